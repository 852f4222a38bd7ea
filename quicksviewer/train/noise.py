"""The seed of the gate's Gumbel noise. Its weight over a run is `CubingConfig.noise_weight`."""

import hashlib


def noise_seed(seed: int, step: int, micro_step: int, rank: int) -> int:
    """A 63-bit seed: different for every step and rank, the same when a run is resumed."""
    digest = hashlib.sha256(f"{seed}/{step}/{micro_step}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

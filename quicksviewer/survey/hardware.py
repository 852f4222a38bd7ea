"""What a run is planned for: how many GPUs, how much memory and work each can do, what an hour costs."""

from dataclasses import dataclass

from quicksviewer.utils.registry import lookup


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """`tflops`: dense bfloat16 peak of a GPU, in 10^12 operations a second (not the figure for sparse
    matrices, which is twice that). `price`: of a GPU for an hour, None where it is not known."""

    gpus: int
    memory_gib: float
    tflops: float
    price: float | None = None

    def __post_init__(self):
        for name in ("gpus", "memory_gib", "tflops"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.price is not None and self.price < 0:
            raise ValueError(f"price must not be negative, got {self.price}")


CARDS = {
    "a100-40": (40, 312),
    "a100-80": (80, 312),
    "h100": (80, 989),
    "h200": (141, 989),
    "h20": (96, 148),
    "l40s": (48, 362),
    "a6000": (48, 155),
    "4090": (24, 165),
    "b200": (180, 2250),
}
"""Name -> GB of memory, dense bfloat16 TFLOP/s, from the makers' data sheets."""
GIB_OF_GB = 1e9 / 2**30
"""Data sheets count in powers of ten."""


def hardware(
    card: str | None, gpus: int, memory_gib: float | None, tflops: float | None, price: float | None
) -> Hardware:
    """A row of CARDS, with given numbers in the place of its own. ValueError where something is missing."""
    if card is None and (memory_gib is None or tflops is None):
        raise ValueError("name the card (--gpu), or give --gpu_memory_gib and --gpu_tflops")
    gb, peak = lookup(CARDS, card, "GPU (--gpu)") if card is not None else (0, 0)
    return Hardware(
        gpus=gpus,
        memory_gib=gb * GIB_OF_GB if memory_gib is None else memory_gib,
        tflops=peak if tflops is None else tflops,
        price=price,
    )

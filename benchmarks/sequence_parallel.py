"""A language model on a team against one process: exactness, bytes on the wire, and the time of a step.

    python benchmarks/sequence_parallel.py [--tokens 2048] [--repeats 8]

On 2 and 4 gloo ranks: our Ulysses, ring and zigzag ring, and DeepSpeed's UlyssesSPAttentionHF on the same
model and batch. Loss and gradients are held against one process first; `yardstick` is how far the gradients
of one process are from float64. Bytes are those that a rank sends in one step (forward and backward), counted
at torch.distributed; the least is what Ulysses must send: queries, results, and keys and values once to each
rank that reads them, there and back. Prints one JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import interleaved, median_interval

HEADS, KEY_HEADS, WIDTH, LAYERS, VOCABULARY = 8, 2, 256, 2, 512
WAYS = {"ulysses": (1, "ring_varlen"), "ring": (0, "ring_varlen"), "zigzag": (0, "zigzag_ring_varlen")}
"""Name -> ranks of the ring (0: all), order."""
EXACT, BYTES = 1e-6, 1.05


class Meter:
    """Bytes that this rank sends through torch.distributed, while it is installed."""

    INPUTS = {
        "all_to_all_single": (1, "input"),
        "all_gather": (1, "tensor"),
        "all_gather_into_tensor": (1, "input_tensor"),
        "reduce_scatter_tensor": (1, "input"),
        "all_reduce": (0, "tensor"),
        "batch_isend_irecv": (0, "p2p_op_list"),
    }
    """Collective -> where its input stands."""

    @staticmethod
    def sent(name: str, given, world: int) -> float:
        """Bytes that leave a rank; of reductions, those of a ring algorithm."""
        if name == "batch_isend_irecv":
            return sum(op.tensor.nbytes for op in given if op.op is dist.isend)
        copies = world if "gather" in name else 2 if name == "all_reduce" else 1
        return copies * given.nbytes * (world - 1) / world

    def __enter__(self):
        self.bytes, self.calls, self._kept = 0, 0, {name: getattr(dist, name) for name in self.INPUTS}
        for name in self.INPUTS:
            setattr(dist, name, self._counted(name))
        return self

    def _counted(self, name):
        place, word = self.INPUTS[name]

        def call(*args, **kwargs):
            given = kwargs[word] if word in kwargs else args[place]
            self.bytes += self.sent(name, given, dist.get_world_size())
            self.calls += 1
            return self._kept[name](*args, **kwargs)

        return call

    def __exit__(self, *_):
        for name, function in self._kept.items():
            setattr(dist, name, function)


def language_model():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=1 << 16,
    )
    return Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").train()


def batch(tokens: int) -> dict[str, torch.Tensor]:
    from quicksviewer.model.documents import next_tokens

    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(1))
    places = torch.arange(tokens)[None]
    return {"input_ids": ids, "position_ids": places, "shift_labels": next_tokens(ids)}


def stepper(model, rows: dict, count: int, **extra):
    """A function that runs one forward and backward pass and returns this rank's part of the loss."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        inputs = dict(rows, labels=rows["shift_labels"], num_items_in_batch=count, use_cache=False)
        loss = model(**inputs, **extra).loss
        loss.backward()
        return loss.detach()

    return step


def our_side(way: str, whole: dict, count: int):
    from quicksviewer.train.sequence_parallel.attention import register
    from quicksviewer.train.sequence_parallel.groups import set_pg_manager
    from quicksviewer.train.sequence_parallel.plan import SequencePlan
    from quicksviewer.train.sequence_parallel.topology import Topology

    ring, order = WAYS[way]
    world = dist.get_world_size()
    topology = Topology(world, world, ring or world)
    manager = set_pg_manager(topology)
    plan = SequencePlan(topology, order, torch.ones_like(whole["input_ids"]).numpy())
    places = torch.from_numpy(plan.places(manager.sequence_rank))
    model = language_model()
    model.config._attn_implementation = register()
    return model, stepper(model, {k: x[:, places] for k, x in whole.items()}, count, sequence=(plan, manager))


def deepspeed_side(whole: dict, count: int):
    """DeepSpeed replaces transformers' "sdpa" for the whole process, so this side is made last."""
    import deepspeed.ops
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo, as for the others
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    world, rank = dist.get_world_size(), dist.get_rank()
    model = language_model()
    UlyssesSPAttentionHF.register_with_transformers(model, "sdpa", world, micro_batch_size=1)
    own = {key: x.chunk(world, dim=1)[rank].contiguous() for key, x in whole.items()}
    return model, stepper(model, own, count)


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


def measure(step, model, wanted_loss, wanted: torch.Tensor) -> dict:
    with Meter() as meter:
        loss = step()
    dist.all_reduce(loss)
    ours = flat_gradient(model)
    dist.all_reduce(ours)
    return {
        "loss_error": abs(float(loss - wanted_loss)) / float(wanted_loss),
        "gradient_error": relative(ours, wanted),
        "bytes": int(meter.bytes),
        "collectives": meter.calls,
    }


def least_bytes(world: int, tokens: int) -> float:
    """What a rank must send with Ulysses in one step."""
    head = tokens // world * (WIDTH // HEADS) * 4
    copies = max(KEY_HEADS, world)  # a head of keys goes to every rank that has queries for it
    return 2 * LAYERS * head * (2 * HEADS + 2 * copies) * (world - 1) / world


def on_rank(rank: int, world: int, tokens: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    whole = batch(tokens)
    count = int((whole["shift_labels"] >= 0).sum())
    alone, exact = language_model(), language_model().double()
    wanted_loss = stepper(alone, whole, count)()
    stepper(exact, whole, count)()
    wanted = flat_gradient(alone)
    sides = {way: our_side(way, whole, count) for way in WAYS}
    sides["deepspeed"] = deepspeed_side(whole, count)
    found = {name: measure(step, model, wanted_loss, wanted) for name, (model, step) in sides.items()}
    times = interleaved({name: step for name, (_, step) in sides.items()}, repeats)
    for name, row in found.items():
        ratios = [peer / own for peer, own in zip(times["deepspeed"], times[name], strict=True)]
        row["deepspeed_time_over_this"] = [round(x, 3) for x in median_interval(ratios)]
        row["bytes_over_least"] = round(row["bytes"] / least_bytes(world, tokens), 4)
    found["yardstick"] = relative(wanted, flat_gradient(exact))
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=8)
    args = parser.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29711"}
    result = {}
    for world in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(on_rank, args=(world, args.tokens, args.repeats, folder), nprocs=world)
            result[f"{world} ranks"] = json.loads(Path(folder, "found.json").read_text())
    rows = [row for found in result.values() for name, row in found.items() if name in WAYS]
    exact = all(max(row["loss_error"], row["gradient_error"]) <= EXACT for row in rows)
    lean = all(found["ulysses"]["bytes_over_least"] <= BYTES for found in result.values())
    print(json.dumps({**result, "exact": exact, "target_bytes": BYTES, "pass": exact and lean}))
    return 0 if exact and lean else 1


if __name__ == "__main__":
    sys.exit(main())

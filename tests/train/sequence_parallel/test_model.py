"""The whole model on a team against one process: loss and every gradient, for every way to cut a sequence."""

import functools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_runner import on_ranks
from tiny_world import CORPUS, MM, SHAPE, WORLD, fresh, text_row, video_row, videos

from quicksviewer.conversation import Turn
from quicksviewer.synthetic.corpus import corpus_text
from quicksviewer.synthetic.tiny import make_language_model
from quicksviewer.train.sequence_parallel.groups import set_pg_manager
from quicksviewer.train.sequence_parallel.team import SequenceTeam, join
from quicksviewer.train.sequence_parallel.topology import Topology
from quicksviewer.train.stages import trainable_prefixes
from quicksviewer.utils.batching import batch_rows, join_media
from quicksviewer.utils.modules import train_only

WAYS = {
    "ulysses-2": (Topology(2, 2, 1), "ring_varlen", "stage3"),
    "zigzag-2": (Topology(2, 2, 2), "zigzag_ring_varlen", "stage3"),
    "zigzag-2, stage 1": (Topology(2, 2, 2), "zigzag_ring_varlen", "stage1"),
    "ulysses-4": (Topology(4, 4, 1), "ring_varlen", "stage3"),
    "zigzag-4": (Topology(4, 4, 4), "zigzag_ring_varlen", "stage3"),
    "product": (Topology(4, 4, 2), "ring_varlen", "stage3"),
    "zigzag-product, stage 2": (Topology(4, 4, 2), "zigzag_ring_varlen", "stage2"),
}
"""Name -> topology, order, what is trained. The model has 4 heads of queries and 1 of keys."""
TOLERANCE = 1e-6
"""Relative: of the loss, and of the gradient as one long vector."""
TOLERANCE_OF_ONE = {"k_proj.bias": 1e-5, "": 2e-6}
"""Of one tensor (by the end of its name), its largest difference in units of its largest entry. A bias of
keys moves all scores of a query nearly alike: its gradient is a sum that cancels, and float32 rounds it."""


def few_frames(loaded, count: int):
    processor = loaded.processor.with_media(max_frames=count)
    return type(loaded)(loaded.tokenizer, loaded.model, processor, loaded.context_length)


def image_row(loaded, root: Path) -> dict:
    image = loaded.processor.load_image(sorted((root / "data").rglob("*.png"))[0])
    return loaded.processor.encode_turns([Turn("user", "<image>\nWhat?"), Turn("assistant", "red")], [image])


def packed(rows: list[dict]) -> dict:
    ids, labels = ([i for row in rows for i in row[key]] for key in ("input_ids", "labels"))
    segments = [n for n, row in enumerate(rows, start=1) for _ in row["input_ids"]]
    batch = {"input_ids": ids, "labels": labels, "segment_ids": segments}
    return {key: torch.tensor([values]) for key, values in batch.items()} | join_media(rows)


def side_by_side(rows: list[dict]) -> dict:
    return batch_rows(rows, 0) | join_media(rows)


def batches(loaded, root: Path) -> dict[str, dict]:
    """Name -> batch. `labels at the end`: whole shards have none."""
    first, second = videos(root)[:2]
    long_video, text = video_row(loaded, first), text_row(loaded)
    weighted = side_by_side([long_video, text])
    weighted["loss_weights"] = torch.linspace(0.5, 2.0, weighted["labels"].numel()).view_as(
        weighted["labels"]
    )
    return {
        "uneven lengths": side_by_side([long_video, text]),
        "weights": weighted,
        "documents": packed([video_row(loaded, first), text, video_row(few_frames(loaded, 7), second), text]),
        "fewer frames than ranks": side_by_side([video_row(few_frames(loaded, 2), second)]),
        "text alone": side_by_side([text]),
        "image and video": side_by_side([image_row(loaded, root), video_row(few_frames(loaded, 5), second)]),
    }


def loss_and_gradients(model, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    noise = dict(noise_weight=0.7, noise_generator=torch.Generator().manual_seed(3))
    out = model(**batch, **noise, use_cache=False)
    loss = out.loss if out.gate_penalty is None else out.loss + 0.01 * out.gate_penalty
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return loss.detach(), {**gradients, "token losses": out.token_losses}


def differences(ours: dict, wanted: dict) -> tuple[float, float]:
    """Of the whole gradient, and the worst of a tensor, as a share of what is tolerated.

    Tensors whose gradient is zero but for rounding are held against the largest of the model.
    """
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    whole, other = (torch.cat([grads[name].flatten() for name in wanted]) for grads in (wanted, ours))
    largest = torch.maximum(whole.abs().max() * 1e-3, tiny)
    shares = []
    for name, x in wanted.items():
        tolerance = next(value for end, value in TOLERANCE_OF_ONE.items() if name.endswith(end))
        difference = (ours[name] - x).abs().max() / x.abs().max().clamp(min=largest)
        shares.append(difference.item() / tolerance)
    return ((whole - other).norm() / torch.maximum(whole.norm(), tiny)).item(), max(shares)


@functools.cache
def models(root: Path) -> tuple:
    """One model to run alone and an equal one to run in a team, and the batches."""
    loaded = fresh(root)
    return loaded.model.train(), fresh(root).model.train(), batches(loaded, root)


@functools.cache
def reference(root: Path, stage: str, case: str) -> tuple:
    model, _, cases = models(root)
    train_only(model, trainable_prefixes(model, stage))
    return loss_and_gradients(model, cases[case])


def compare(root: str, name: str) -> dict[str, tuple]:
    """Per batch: the loss in the team, alone, and the differences of the gradients."""
    topology, order, stage = WAYS[name]
    _, shared, cases = models(Path(root))
    train_only(shared, trainable_prefixes(shared, stage))
    join(shared, SequenceTeam(set_pg_manager(topology), order))
    results = {}
    for case, batch in cases.items():
        wanted_loss, wanted = reference(Path(root), stage, case)
        loss, grads = loss_and_gradients(shared, batch)
        assert all(grad is not None for grad in grads.values()), case
        for x in (loss, *grads.values()):
            dist.all_reduce(x)
            x /= topology.world
        results[case] = (loss.item(), wanted_loss.item(), *differences(grads, wanted))
    return results


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("team")
    for path in tiny.iterdir():
        if path.name != "qwen2":
            (root / path.name).symlink_to(path)
    shape = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 1}
    make_language_model(root / "qwen2", "qwen2", corpus_text(WORLD, CORPUS, count=60), **shape)
    results = {}
    for world in (2, 4):
        names = [name for name, (topology, *_) in WAYS.items() if topology.world == world]
        cases = {name: (compare, {"root": str(root), "name": name}) for name in names}
        results |= on_ranks(world, cases, tmp_path_factory.mktemp(f"ranks{world}"))
    return results


@pytest.mark.parametrize("name", WAYS)
def test_loss_and_gradients_are_those_of_one_process(found, name):
    assert all(results == found[name][0] for results in found[name])
    for case, (loss, wanted, whole, worst) in found[name][0].items():
        assert loss == pytest.approx(wanted, rel=TOLERANCE), case
        assert whole < TOLERANCE and worst < 1, (case, whole, worst)


def test_the_thumbnail_is_on_and_videos_are_cut(tiny):
    assert fresh(tiny).model.mm_config.thumbnail.enabled and MM["cubing"]["frames_per_cube"] == 3

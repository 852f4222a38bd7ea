"""Every kind of cubing in a team: it gives the loss of one process, or says that it cannot."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_runner import on_ranks
from tiny_world import fresh, video_row, videos

from quicksviewer.model.multimodal_cubing import CUBINGS
from quicksviewer.train.sequence_parallel.groups import set_pg_manager
from quicksviewer.train.sequence_parallel.team import SequenceTeam, join
from quicksviewer.train.sequence_parallel.topology import Topology
from quicksviewer.utils.batching import batch_rows, join_media

ALONE_ONLY = {"cumulative", "reinmax", "subset", "soft", "router"}
"""What trains by mixing what neighbouring cubes say, which lie on different processes."""


def loss_of(model, batch: dict) -> float:
    """Of this process's share of the targets; the mean over the team is the loss."""
    return float(model(**batch, use_cache=False).loss)


def losses(root: str) -> dict[str, tuple[float, float] | str]:
    """Kind -> the loss in the team and alone, or why there is none."""
    manager, found = set_pg_manager(Topology(2, 2, 1)), {}
    for kind in sorted(CUBINGS):
        loaded = fresh(Path(root), cubing={"kind": kind})
        rows = [video_row(loaded, videos(Path(root))[0])]
        batch, model = batch_rows(rows, 0) | join_media(rows), loaded.model.train()
        alone = loss_of(model, batch)
        join(model, SequenceTeam(manager))
        try:
            together = torch.tensor(loss_of(model, batch))
        except ValueError as error:
            found[kind] = str(error)
            continue
        dist.all_reduce(together)
        found[kind] = (float(together) / 2, alone)
    return found


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    return on_ranks(2, {"kinds": (losses, {"root": str(tiny)})}, tmp_path_factory.mktemp("kinds"))["kinds"]


@pytest.mark.parametrize("kind", sorted(CUBINGS))
def test_a_kind_gives_the_loss_of_one_process_or_is_refused(found, kind):
    for rank in found:
        if kind in ALONE_ONLY:
            assert f"cubing {kind!r} mixes neighbouring cubes" in rank[kind]
            assert "sequence parallelism" in rank[kind] and "use momentum or uniform" in rank[kind]
        else:
            together, alone = rank[kind]
            assert together == pytest.approx(alone, rel=1e-6)

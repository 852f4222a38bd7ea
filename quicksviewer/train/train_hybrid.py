"""Train with sequence parallelism: several ranks share every sequence, its frames and its tokens.

    python -m torch.distributed.run --standalone --nproc_per_node 4 \\
        -m quicksviewer.train.train_hybrid --recipe tiny --stage stage1 --seq_parallel_size 2

Everything else is as in train.py; docs/sequence_parallel.md says what the sizes mean.
"""

import sys

from quicksviewer.train import train
from quicksviewer.train.args import Run
from quicksviewer.train.sequence_parallel.groups import set_pg_manager
from quicksviewer.train.sequence_parallel.team import SequenceTeam, join
from quicksviewer.train.sequence_parallel.topology import choose
from quicksviewer.utils.dist import is_main, world_size


def form_team(run: Run, model) -> None:
    """Choose a topology for the run and let its model share batches within teams."""
    topology = choose(world_size(), model.config.num_attention_heads, **run.training.sequence_parallel())
    if topology.sequence > 1:
        join(model, SequenceTeam(set_pg_manager(topology), run.training.seq_parallel_ring_type))
    if is_main():
        team = f"{topology.sequence} ranks (ulysses {topology.ulysses}, ring {topology.ring})"
        print(f"sequence parallelism: {topology.data} teams of {team}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Exit code as that of `train.main`."""
    return train.main(argv, form_team)


if __name__ == "__main__":
    sys.exit(main())

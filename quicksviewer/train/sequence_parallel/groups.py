"""The topology as process groups. A group of one rank is None: there is nobody to talk to."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup

from quicksviewer.train.sequence_parallel.topology import Topology


@dataclass(frozen=True)
class ProcessGroupManager:
    """This process in its groups: `data` across teams, `sequence` the team, the others parts of it."""

    topology: Topology
    rank: int
    data: ProcessGroup | None
    sequence: ProcessGroup | None
    ulysses: ProcessGroup | None
    ring: ProcessGroup | None

    @property
    def data_rank(self) -> int:
        return self.topology.data_rank(self.rank)

    @property
    def sequence_rank(self) -> int:
        return self.topology.sequence_rank(self.rank)

    @property
    def ulysses_rank(self) -> int:
        return self.topology.ulysses_rank(self.rank)

    @property
    def ring_rank(self) -> int:
        return self.topology.ring_rank(self.rank)


_MANAGER: ProcessGroupManager | None = None


def set_pg_manager(topology: Topology) -> ProcessGroupManager:
    """Make the groups of a topology. Every rank of the world must call it, in the same order as other calls
    that make groups. ValueError when the topology is of another world than the one that runs."""
    global _MANAGER
    if not dist.is_initialized():
        raise RuntimeError(
            "start torch.distributed before set_pg_manager: the launcher or train.main does it"
        )
    if topology.world != dist.get_world_size():
        raise ValueError(f"the topology is for {topology.world} ranks, and {dist.get_world_size()} run")
    made: dict[tuple, ProcessGroup] = {}
    kinds = {
        "sequence": topology.sequence_groups(),
        "data": topology.data_groups(),
        "ulysses": topology.ulysses_groups(),
        "ring": topology.ring_groups(),
    }
    rank = dist.get_rank()
    own = {kind: _own_group(groups, rank, made) for kind, groups in kinds.items()}
    _MANAGER = ProcessGroupManager(topology, rank, **own)
    return _MANAGER


def _own_group(groups: list[list[int]], rank: int, made: dict) -> ProcessGroup | None:
    """Make all groups of a kind, those of the same ranks only once, and return the one with this rank."""
    own = None
    for ranks in groups:
        if len(ranks) == 1:
            continue
        if tuple(ranks) not in made:
            made[tuple(ranks)] = dist.new_group(ranks)
        if rank in ranks:
            own = made[tuple(ranks)]
    return own


def get_pg_manager() -> ProcessGroupManager:
    """The groups that `set_pg_manager` made. RuntimeError before that."""
    if _MANAGER is None:
        raise RuntimeError(
            "no process groups yet: call set_pg_manager(Topology(world, sequence, ring)) first"
        )
    return _MANAGER


def drop_pg_manager() -> None:
    """Forget the groups, as tests of several topologies in one process do."""
    global _MANAGER
    _MANAGER = None

"""Which ranks share one sequence, as a value: no process group is needed to ask it.

World = data x sequence, sequence = ring x ulysses. Neighbouring ranks form a team; within a team neighbours
form a Ulysses group, because it talks most. With world 8, sequence 4, ring 2:

    rank            0 1 2 3   4 5 6 7
    data rank       0 0 0 0   1 1 1 1      reads the same sample
    ring rank       0 0 1 1   0 0 1 1      holds the same part of the sequence, cut among a Ulysses group
    ulysses rank    0 1 0 1   0 1 0 1      holds the same heads while attention runs
"""

from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True)
class Topology:
    """`world` ranks, `sequence` of them a team, in `ring` parts that pass keys and values on."""

    world: int
    sequence: int = 1
    ring: int = 1

    def __post_init__(self):
        if min(self.world, self.sequence, self.ring) < 1:
            raise ValueError(f"sizes are at least 1, got {self}")
        if self.world % self.sequence:
            raise ValueError(f"{self.world} ranks cannot form teams of {self.sequence}: not a multiple")
        if self.sequence % self.ring:
            raise ValueError(f"a team of {self.sequence} cannot form a ring of {self.ring}: not a multiple")

    @property
    def ulysses(self) -> int:
        """Ranks that exchange heads for tokens."""
        return self.sequence // self.ring

    @property
    def data(self) -> int:
        """Teams: the samples that are read at a time."""
        return self.world // self.sequence

    def data_rank(self, rank: int) -> int:
        return self._checked(rank) // self.sequence

    def sequence_rank(self, rank: int) -> int:
        """Place in the team."""
        return self._checked(rank) % self.sequence

    def ring_rank(self, rank: int) -> int:
        return self.sequence_rank(rank) // self.ulysses

    def ulysses_rank(self, rank: int) -> int:
        return self.sequence_rank(rank) % self.ulysses

    def team(self, rank: int) -> list[int]:
        """The ranks that read the same sample as this one, itself included, in order."""
        first = rank - self.sequence_rank(rank)
        return list(range(first, first + self.sequence))

    def sequence_groups(self) -> list[list[int]]:
        """Every team."""
        return [self.team(first) for first in range(0, self.world, self.sequence)]

    def data_groups(self) -> list[list[int]]:
        """Ranks with the same place in their teams: together they read every sample once."""
        return [list(range(place, self.world, self.sequence)) for place in range(self.sequence)]

    def ulysses_groups(self) -> list[list[int]]:
        """Ranks of a team that exchange heads for tokens."""
        return [list(range(i, i + self.ulysses)) for i in range(0, self.world, self.ulysses)]

    def ring_groups(self) -> list[list[int]]:
        """Ranks of a team that pass keys and values on, in the order of their parts of the sequence."""
        return [
            team[place :: self.ulysses] for team in self.sequence_groups() for place in range(self.ulysses)
        ]

    def _checked(self, rank: int) -> int:
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} is not among the {self.world} ranks 0..{self.world - 1}")
        return rank


def choose(world: int, heads: int, sequence: int | None = None, ring: int | None = None) -> Topology:
    """The topology of a run: all ranks one team, and the shortest ring, unless they are given.

    A Ulysses group can be no larger than the number of query heads and has to divide it; what is left of the
    team is the ring. ValueError when the sizes that are given do not fit the world or the heads.
    """
    sequence = world if sequence is None else sequence
    least = sequence // gcd(sequence, heads) if sequence >= 1 else 1
    topology = Topology(world, sequence, least if ring is None else ring)
    if heads % topology.ulysses:
        raise ValueError(
            f"{heads} attention heads cannot be dealt to {topology.ulysses} ranks; "
            f"the least --seq_parallel_ring_size for a team of {sequence} is {least}"
        )
    return topology

"""Which samples share a row: planned from their sizes alone, before a file is opened.

A sample's size is (tokens, frames, squares), squares being its tokens squared: the work that attention does
on it. A pack holds whole samples and stays under a cap in each of the three. Nothing is cut, dropped or made
up; a sample that fits into no pack is an error here, and `lengths.py` reduces it beforehand.

    best_fit      one cap, tokens: best-fit decreasing, exact, by counting
    plan_packs    any caps: one cap as above; several by filling packs one after the other from two shelves
    stream_packs  the same for samples that come one at a time, from a pool of those that wait

Letters: N samples, P packs, K the three sizes.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SIZES = ("tokens", "frames", "squares")
UNLIMITED = (2**20, 2**40, 2**62)
"""Stand for a cap that is not set; products of a tokens cap and a frames cap stay within 64 bits."""
LEVEL = 1.02
"""Caps beside that of tokens are lowered to so many times the mean of a pack."""
BANDS = (0.25, 0.5, 1.0)
"""Limits between shelves: frames for their tokens, both in shares of the caps."""
LOOK = 24
"""How many samples of a shelf are tried, from the largest that could fit downwards."""


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What a pack may hold at most. None: any number."""

    tokens: int
    frames: int | None = None
    squares: int | None = None

    def __post_init__(self):
        for name in SIZES:
            if (cap := getattr(self, name)) is not None and cap < 1:
                raise ValueError(f"a pack's cap of {name} must be at least 1, got {cap}")
        if self.tokens > UNLIMITED[0]:
            raise ValueError(f"a pack's cap of tokens must be at most {UNLIMITED[0]}, got {self.tokens}")

    @property
    def only_tokens(self) -> bool:
        return self.frames is None and self.squares is None

    def as_row(self) -> np.ndarray:
        """(3,) int64; a cap that is not set is larger than any sum."""
        caps = (getattr(self, name) or unlimited for name, unlimited in zip(SIZES, UNLIMITED, strict=True))
        return np.array(list(caps), dtype=np.int64)


def sizes_of(tokens_N: Sequence[int], frames_N: Sequence[int]) -> np.ndarray:
    """(N, 3) int64: tokens, frames, tokens squared."""
    tokens, frames = np.asarray(tokens_N, dtype=np.int64), np.asarray(frames_N, dtype=np.int64)
    return np.stack([tokens, frames, tokens * tokens], axis=1)


@dataclass(frozen=True)
class Packs:
    """Packs of samples: pack p holds `samples[starts[p]:starts[p + 1]]`, every sample exactly once."""

    samples: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_owner(cls, owner_N: np.ndarray) -> "Packs":
        """From the pack that each sample goes into; packs are 0..P-1, none of them empty."""
        counts = np.bincount(owner_N) if len(owner_N) else np.zeros(0, dtype=np.int64)
        return cls(np.argsort(owner_N, kind="stable"), np.concatenate([[0], np.cumsum(counts)]))

    @classmethod
    def from_lists(cls, packs: Sequence[Sequence[int]]) -> "Packs":
        counts = [len(pack) for pack in packs]
        samples = np.fromiter((i for pack in packs for i in pack), np.int64, sum(counts))
        return cls(samples, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        if not 0 <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        return self.samples[self.starts[pack] : self.starts[pack + 1]]

    def totals(self, values_N: np.ndarray) -> np.ndarray:
        """Sum over each pack: (P,), or (P, K) for values (N, K)."""
        if not len(self):
            return np.zeros((0, *np.shape(values_N)[1:]), dtype=np.int64)
        return np.add.reduceat(np.asarray(values_N)[self.samples], self.starts[:-1], axis=0)


# One cap


def best_fit(lengths_N: Sequence[int], cap: int) -> np.ndarray:
    """Best-fit decreasing: the pack of each sample (N,), each sample into the fullest pack that has room.

    Samples of one length are placed together into packs of one room, so that the time depends on the number
    of different lengths and not on that of samples. ValueError for a length outside 1..cap.
    """
    lengths = np.asarray(lengths_N, dtype=np.int64)
    _check_fits(lengths[:, None], np.array([cap]), SIZES[:1])
    order = np.argsort(-lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    rooms = _Rooms(cap)
    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        rooms.place(length, count)
    owner = np.empty(len(lengths), dtype=np.int64)
    owner[order] = _expand(rooms.runs)
    return owner


class _Rooms:
    """Open packs by the room that is left in them; packs of equal room are ranges of numbers."""

    def __init__(self, cap: int):
        self.cap, self.num_packs = cap, 0
        self.rooms: list[int] = []
        """Rooms that some pack has, ascending."""
        self.packs: dict[int, list[tuple[int, int]]] = {}
        """Room -> (first pack, number of packs)."""
        self.runs: list[tuple[int, int, int]] = []
        """(first pack, number of packs, samples in each), in the order of the sorted samples."""

    def place(self, length: int, count: int) -> None:
        """Put `count` samples of one length where they fit best; open packs when they fit nowhere."""
        while count:
            room, first, available = self._tightest(length, count)
            each = min(room // length, count)
            used = min(available, count // each)
            self.runs.append((first, used, each))
            count -= used * each
            self._add(room - each * length, first, used)
            self._add(room, first + used, available - used)

    def _tightest(self, length: int, count: int) -> tuple[int, int, int]:
        """(room, first pack, number of packs) of the smallest room that holds the length; taken out."""
        place = bisect_left(self.rooms, length)
        if place == len(self.rooms):
            new = -(-count // (self.cap // length))
            self.num_packs += new
            return self.cap, self.num_packs - new, new
        room = self.rooms[place]
        first, available = self.packs[room].pop()
        if not self.packs[room]:
            del self.packs[room], self.rooms[place]
        return room, first, available

    def _add(self, room: int, first: int, count: int) -> None:
        if room and count:
            if room not in self.packs:
                insort(self.rooms, room)
            self.packs.setdefault(room, []).append((first, count))


def _expand(runs: list[tuple[int, int, int]]) -> np.ndarray:
    """The pack of each placed sample, in order."""
    first, packs, each = np.array(runs, dtype=np.int64).reshape(-1, 3).T
    number = packs * each
    inside = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    return np.repeat(first, number) + inside // np.repeat(each, number)


def _check_fits(sizes_NK: np.ndarray, caps_K: np.ndarray, names: Sequence[str], start: int = 0) -> None:
    """ValueError naming the first sample that no pack can hold, or that is empty; counted from `start`."""
    for k, name in enumerate(names):
        if len(wrong := np.flatnonzero(sizes_NK[:, k] > caps_K[k])):
            raise ValueError(
                f"sample {start + wrong[0]} has {sizes_NK[wrong[0], k]} {name}, a pack holds {caps_K[k]}; "
                f"{len(wrong)} samples are larger than a pack: reduce them (fewer frames), or raise the cap"
            )
    if len(empty := np.flatnonzero(sizes_NK[:, 0] < 1)):
        raise ValueError(
            f"sample {start + empty[0]} has {sizes_NK[empty[0], 0]} tokens; a sample has at least one"
        )


# Several caps


def plan_packs(sizes_NK: np.ndarray, caps: Caps) -> Packs:
    """Packs of all samples, sizes (N, 3) as `sizes_of` makes them. ValueError for one that fits into none.

    With several caps, packs are filled one after the other, the largest sample that is left first (see
    `_Filler`), and under tighter caps, little above what a pack must hold on average: so packs are alike, and
    ranks that work on one each finish together. Where that costs packs the caps are taken as they are.
    """
    caps_K = caps.as_row()
    _check_fits(sizes_NK, caps_K, SIZES)
    if caps.only_tokens or not len(sizes_NK):
        return Packs.from_owner(best_fit(sizes_NK[:, 0], caps.tokens))
    least = fewest_packs(sizes_NK, caps)
    level_K = np.maximum(np.ceil(LEVEL * sizes_NK.sum(axis=0) / least), sizes_NK.max(axis=0)).astype(np.int64)
    tight_K = np.minimum(caps_K, np.where(caps_K < UNLIMITED, level_K, caps_K))
    tight_K[0] = caps.tokens
    packs = list(_Filler(sizes_NK, tight_K).packs())
    if len(packs) > LEVEL * least + 1:
        packs = min(packs, list(_Filler(sizes_NK, caps_K).packs()), key=len)
    return Packs.from_lists(packs)


def fewest_packs(sizes_NK: np.ndarray, caps: Caps) -> int:
    """A lower bound: the packs that the sums fill without a gap in the cap that binds."""
    return int(np.ceil(sizes_NK.sum(axis=0) / caps.as_row()).max())


class _Shelf:
    """Samples by one of their sizes, ascending; gives the largest that is still there and fits."""

    def __init__(self, sizes_NK: np.ndarray, members: np.ndarray, key: int):
        order = members[np.lexsort((sizes_NK[members, 1 - key], sizes_NK[members, key]))]
        self.samples, self.keys = order.tolist(), sizes_NK[order, key].tolist()
        self.tokens, self.frames = sizes_NK[order, 0].tolist(), sizes_NK[order, 1].tolist()
        self.key_per_token = float((sizes_NK[order, key] / sizes_NK[order, 0]).max(initial=0))
        self.below = list(range(len(order) + 1))
        """Place + 1 of the nearest sample at or below a place that is still there; 0: none."""

    def down(self, place: int) -> int:
        """The nearest place at or below that is still there; the way is halved for the next time."""
        below = self.below
        while (under := below[place]) != place:
            below[place] = place = below[under]
        return place

    def take(self, place: int) -> int:
        self.below[place] = place - 1
        return self.samples[place - 1]

    def largest(self, key: int, tokens: int, frames: int) -> int:
        """Place + 1 of the largest of the first few under these limits; 0 where there is none."""
        place = self.down(bisect_right(self.keys, min(key, tokens * self.key_per_token)))
        for _ in range(LOOK):
            if not place or (self.tokens[place - 1] <= tokens and self.frames[place - 1] <= frames):
                return place
            place = self.down(place - 1)
        return 0


class _Filler:
    """Fills packs one after the other from shelves of samples with like frames for their tokens.

    As long as a pack has more room for frames than for tokens, in shares of its caps, it takes from the shelf
    with the most frames; else from the one with the most that are still fewer than its room has, so that both
    fill up together. Samples without frames close the gaps. A pack whose tokens are to be filled without too
    many squares takes samples no longer than squares / tokens of its room.
    """

    def __init__(self, sizes_NK: np.ndarray, caps_K: np.ndarray):
        self.sizes, self.caps = sizes_NK.tolist(), caps_K.tolist()
        share_NK = sizes_NK / caps_K
        shelf_N = np.searchsorted(BANDS, share_NK[:, 1] / share_NK[:, 0]) + (sizes_NK[:, 1] > 0)
        members = [np.flatnonzero(shelf_N == number) for number in range(len(BANDS) + 2)]
        last = len(members) - 1
        self.shelves = [_Shelf(sizes_NK, m, int(number == last)) for number, m in enumerate(members)]
        below = [[*range(band, -1, -1), *range(band + 1, last + 1)] for band in range(len(BANDS))]
        self.orders = [[self.shelves[n] for n in order] for order in (*below, range(last, -1, -1))]
        self.heavy, self.tokens_per_frame = self.shelves[-1], self.caps[0] / self.caps[1]
        light_K = sizes_NK[shelf_N < last].sum(axis=0)
        binds = share_NK[:, 1].sum() > share_NK[:, 0].sum()
        self.reserve = 0.0 if binds else light_K[1] / max(light_K[0], 1)
        """Frames left for each token of room, so that what is not heavy finds the frames that it needs."""
        self.first = np.argsort(-share_NK.max(axis=1), kind="stable").tolist()
        self.where: list = [None] * len(sizes_NK)
        for shelf in self.shelves:
            for place, sample in enumerate(shelf.samples, start=1):
                self.where[sample] = shelf, place

    def packs(self) -> Iterator[list[int]]:
        for sample in self.first:
            shelf, place = self.where[sample]
            if shelf.below[place] == place:
                shelf.take(place)
                yield self._fill(sample)

    def _fill(self, sample: int) -> list[int]:
        sizes, room, pack = self.sizes, self.caps, []
        while True:
            pack.append(sample)
            size = sizes[sample]
            room = [room[0] - size[0], room[1] - size[1], room[2] - size[2]]
            if room[0] <= 0:
                return pack
            found = self._next(room)
            if found is None:
                return pack
            sample = found

    def _next(self, room: list[int]) -> int | None:
        """The sample that a pack with this room takes next, taken from its shelf; None where none fits."""
        tokens, frames, squares = room
        longest = min(tokens, squares // tokens)
        share = frames / tokens * self.tokens_per_frame
        for shelf in self.orders[bisect_left(BANDS, share)]:
            key = frames - self.reserve * tokens if shelf is self.heavy else longest
            if place := shelf.largest(key, longest, frames):
                return shelf.take(place)
        place = self.heavy.largest(frames, longest, frames)
        return self.heavy.take(place) if place else None


# As they come


def stream_packs(sizes: Iterable[Sequence[int]], caps: Caps, pool: int = 1024) -> Iterator[list[int]]:
    """Packs of samples that come one at a time, as lists of their numbers; at most `pool` of them wait.

    Every pack takes the sample that has waited longest, then always the longest that fits under the rule of
    `_Filler`, so that no sample waits for more than `pool` packs. ValueError for one that fits into none.
    """
    if pool < 1:
        raise ValueError(f"a pool holds at least one sample, got {pool}")
    caps_K, waiting = caps.as_row(), _Waiting(pool)
    for number, size in enumerate(sizes):
        row = np.asarray(size, dtype=np.int64)
        _check_fits(row[None], caps_K, SIZES, number)
        waiting.add(number, row)
        if waiting.count == pool:
            yield waiting.pack(caps_K)
    while waiting.count:
        yield waiting.pack(caps_K)


class _Waiting:
    """Samples that wait for a pack, the oldest first."""

    def __init__(self, pool: int):
        self.sizes, self.numbers = np.zeros((pool, 3), dtype=np.int64), np.zeros(pool, dtype=np.int64)
        self.count = 0

    def add(self, number: int, size_K: np.ndarray) -> None:
        self.sizes[self.count], self.numbers[self.count] = size_K, number
        self.count += 1

    def pack(self, caps_K: np.ndarray) -> list[int]:
        """One pack of those that wait; they leave."""
        sizes_WK = self.sizes[: self.count]
        waits_W = np.ones(self.count, dtype=bool)
        pack, room_K, place = [], caps_K, 0
        while place is not None:
            pack.append(int(self.numbers[place]))
            room_K, waits_W[place] = room_K - sizes_WK[place], False
            place = _pick(sizes_WK, waits_W, room_K, caps_K)
        kept = np.flatnonzero(waits_W)
        self.count = len(kept)
        self.sizes[: self.count], self.numbers[: self.count] = sizes_WK[kept], self.numbers[kept]
        return pack


def _pick(sizes_WK, waits_W, room_K, caps_K) -> int | None:
    """Who fits best into a room: None where nobody does."""
    if room_K[0] <= 0:
        return None
    fits_W = waits_W & (sizes_WK <= room_K).all(axis=1)
    gentle_W = fits_W & (sizes_WK[:, 0] * room_K[0] <= room_K[2])
    fits_W = gentle_W if gentle_W.any() else fits_W
    if not fits_W.any():
        return None
    wants_frames = room_K[1] * caps_K[0] > room_K[0] * caps_K[1]
    heavy_W = fits_W & ((sizes_WK[:, 1] * caps_K[0] > sizes_WK[:, 0] * caps_K[1]) == wants_frames)
    fits_W = heavy_W if heavy_W.any() else fits_W
    return int(np.where(fits_W, sizes_WK[:, int(wants_frames)], -1).argmax())

"""What a manifest knows of the media of a mixture, by index: whether they are still the same, and what
decoding them costs.

Letters: L lines of the manifest, R its rows, N rows of the mixture.
"""

from collections.abc import Sequence

import numpy as np

from quicksviewer.data.ledger import digest
from quicksviewer.data.lengths import state_of
from quicksviewer.data.manifest import Manifest
from quicksviewer.data.mixture import Mixture
from quicksviewer.data.preprocess import MediumRef, SampleError
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.file_hash import has_hash
from quicksviewer.utils.stores import StoredPath


class Outdated(SampleError):
    """A row of which a manifest says what is no longer so. `judge`: that manifest, for the ledger: its line
    holds until the manifest is made anew."""

    def __init__(self, where: str, reason: str, judge: str):
        super().__init__(where, reason)
        self.judge = judge


class ManifestMedia:
    """Arrays alone, so that forked workers share them. ValueError for a manifest without these rows."""

    def __init__(self, manifest: Manifest, mixture: Mixture):
        self.path = manifest.path
        self.rows_N, self.starts = manifest.rows_of(mixture), manifest.starts
        self.bytes_L, self.changed_L = (manifest.numbers(name, -1) for name in ("bytes", "changed"))
        self.megapixels_N = _decoded(manifest)[self.rows_N]
        """Decoded for the media of each row."""
        self.judge = f"manifest {digest(state_of(manifest.path))}"
        self._hashes = None
        self._same: set[int] = set()
        """Lines whose file has another time of change and the same hash."""

    def check(self, index: int, media: Sequence[MediumRef], where: str) -> None:
        """Outdated where a medium of the row at an index is another one than the manifest has."""
        first = int(self.starts[self.rows_N[index]])
        for line, ref in enumerate(media, start=first):
            if self.bytes_L[line] >= 0 and (change := self._change(line, ref.path)):
                raise self.outdated(where, f"{ref.path} has changed since: {change}")

    def outdated(self, where: str, reason: str) -> Outdated:
        """A row that is not as the manifest says, with what to do about it."""
        remedy = f"{self.path} is outdated, make it anew with `quicksviewer data index`"
        return Outdated(where, f"{reason}; {remedy}", self.judge)

    def _change(self, line: int, path: str) -> str | None:
        """How a medium differs from what a line says; None where it does not, or is not there at all."""
        try:
            size, changed = state_of(path)
        except MediaError:
            return None  # loading it says better what is wrong
        if size != self.bytes_L[line]:
            return f"it had {self.bytes_L[line]} bytes, now {size}"
        if changed == self.changed_L[line] or line in self._same:
            return None
        if not self._has_hash(line, path):
            return "it has another time of change, and no hash says that it is the same"
        self._same.add(line)
        return None

    def _has_hash(self, line: int, path: str) -> bool:
        """A file that was copied has another time and the same contents."""
        if self._hashes is None:
            self._hashes = Manifest(self.path).read("hash")["hash"]
        known = self._hashes[line].as_py()
        try:
            return known is not None and not isinstance(path, StoredPath) and has_hash(path, known)
        except OSError:
            return False

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_hashes": None}


def _decoded(manifest: Manifest) -> np.ndarray:
    """Megapixels that are decoded for each row (R,): of a clip, its share of what all of the video takes."""
    whole_L, seconds_L = np.nan_to_num(manifest.reals("duration")), manifest.clip_seconds
    share_L = np.where(whole_L > 0, seconds_L / np.where(whole_L > 0, whole_L, 1), 1.0)
    return manifest.over_rows(np.nan_to_num(manifest.reals("decode_megapixels")) * share_L)

"""A manifest of media (`data index`) in the place of looking at their heads."""

import os
from pathlib import Path

from quicksviewer.data.lengths import Heads
from quicksviewer.utils.data_util import MediaError, VideoInfo
from quicksviewer.utils.registry import require

COLUMNS = ("path", "kind", "duration", "num_frames", "fps", "width", "height", "codec", "error")
"""What is read of a manifest; it may hold more. `error`: why a medium cannot be used, else null."""


class ManifestHeads(Heads):
    """Heads of the media that a manifest lists; others are looked at."""

    def __init__(self, rows: dict[str, dict], decoder: str = "av"):
        super().__init__(decoder=decoder)
        self.rows = rows

    def video(self, path: str) -> VideoInfo:
        """See Heads.video."""
        if (row := self._row(path, "video")) is None:
            return super().video(path)
        return VideoInfo(path, *(row[name] for name in COLUMNS[2:8]))

    def image(self, path: str) -> tuple[int, int]:
        """See Heads.image."""
        row = self._row(path, "image")
        return super().image(path) if row is None else (row["width"], row["height"])

    def _row(self, path: str, kind: str) -> dict | None:
        row = self.rows.get(os.path.abspath(path))
        if row is None:
            return None
        if row["error"]:
            raise MediaError(path, row["error"])
        if row["kind"] != kind:
            raise MediaError(path, f"is {row['kind']} in the manifest, not {kind}")
        return row


def read_manifest(path: str | os.PathLike) -> dict[str, dict]:
    """The rows of a manifest by the absolute path of their medium. ValueError for another kind of file."""
    parquet = require("pyarrow.parquet", "data")
    arrow = require("pyarrow", "data")
    if not Path(path).is_file():
        raise ValueError(f"there is no manifest {path}; make it with `quicksviewer data index`")
    try:
        names = parquet.read_schema(path).names
        if missing := [name for name in COLUMNS if name not in names]:
            raise ValueError(
                f"{path} is no manifest: it lacks {', '.join(missing)}; it has {', '.join(names)}"
            )
        rows = parquet.read_table(path, columns=list(COLUMNS)).to_pylist()
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not readable as parquet: {error}") from error
    folder = os.path.dirname(os.path.abspath(path))
    return {os.path.abspath(os.path.join(folder, row["path"])): row for row in rows}

"""Files of a media root by what a data set calls them, where that is not their path."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath

from quicksviewer.preprocess.files import Place
from quicksviewer.utils.registry import lookup

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif")


def _name(root: Place, path: str) -> str | None:
    return PurePosixPath(path).name


def _stem(root: Place, path: str) -> str | None:
    return PurePosixPath(path).stem


def _kinetics(root: Place, path: str) -> str | None:
    """ "k400/NAME" for a file anywhere below a folder k400, k600 or k700."""
    edition = next((part for part in PurePosixPath(path).parts if part in ("k400", "k600", "k700")), None)
    return edition and f"{edition}/{PurePosixPath(path).name}"


def _youtube(root: Place, path: str) -> str | None:
    """The address's id, from the JSON file that a downloader left beside the video."""
    beside = str(PurePosixPath(path).with_suffix(".json"))
    if not root.exists(beside):
        return None
    try:
        found = json.loads(root.read(beside))["yt_meta_dict"]["info"]["id"]
    except (ValueError, KeyError, TypeError):
        return None  # no such file: its row is skipped as "medium missing"
    return found if isinstance(found, str) else None


INDEXES: dict[str, Callable[[Place, str], str | None]] = {
    "name": _name,
    "stem": _stem,
    "kinetics": _kinetics,
    "youtube": _youtube,
}
"""How -> function (media root, path) that gives the key of a file, or None when it has none."""


def build_index(root: Place, how: str) -> dict[str, list[str]]:
    """Key -> paths of the videos below the media root, sorted."""
    key_of, found = lookup(INDEXES, how, "index"), defaultdict(list)
    for path in root.names():
        if path.lower().endswith(VIDEO_SUFFIXES) and (key := key_of(root, path)) is not None:
            found[key].append(path)
    return dict(found)

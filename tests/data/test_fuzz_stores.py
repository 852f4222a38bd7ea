"""Valid files, mutated: readers give rows and frames or an error that they document, and nothing else.

    bash scripts/fuzz.sh                  # a minute for each reader

FUZZ_SECONDS (default 1.5) is the time of each reader. A hang is an error, and so is memory that grows. Inputs
are the same in every run, unless FUZZ_EXAMPLES names a folder: what fails is kept there and tried first from
then on. atheris_stores.py drives the same readers.
"""

import json
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from quicksviewer.data.manifest import SCHEMA, VERSION, Manifest, pack_times, schema, unpack_times
from quicksviewer.data.manifest_sizes import ManifestSizes
from quicksviewer.data.mixture import DatasetSpec, Mixture
from quicksviewer.data.packing import Caps
from quicksviewer.data.preprocess import SampleError, parse_sample
from quicksviewer.data.sources import CHAT, JsonlIndex, jsonl, open_source
from quicksviewer.survey.lines import table_bytes
from quicksviewer.utils.array_file import CACHE_VARIABLE, DamagedFile, map_block
from quicksviewer.utils.data_util import MediaError, TSVReader, TSVWriter
from quicksviewer.utils.frame_store import FrameStore, FrameStoreWriter
from quicksviewer.utils.registry import require

SECONDS = float(os.environ.get("FUZZ_SECONDS", "1.5"))
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
HANG_SECONDS = 10
"""That one input may take, on a machine where others work."""
GROWTH_KIB = 256 << 10
"""By which the process may grow while it reads mutated files of a few kilobytes."""
ROWS = [
    {"uid": f"u{i}", "data_type": "caption", "video": f"v{i}.mp4", "caption": "é東" * i, "start_sec": 0.5}
    for i in range(6)
]


def frames(count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(16, dtype=np.uint8)[None, None, :, None] * 9, (count, 8, 16, 3)).copy()


# Mutations

WORDS = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"[" * 64,
    b'"',
    b"\t",
    b"\n",
    b"{",
    b"}",
    b"-1",
    b"9" * 30,
    b"1e999",
    b"\x80",
]
SPOT = st.floats(0, 1)
CHANGES = st.one_of(
    st.tuples(st.just("flip"), SPOT, st.integers(1, 255)),
    st.tuples(st.just("put"), SPOT, st.sampled_from(WORDS)),
    st.tuples(st.just("over"), SPOT, st.binary(max_size=9)),
    st.tuples(st.just("cut"), SPOT, SPOT),
    st.tuples(st.just("double"), SPOT, SPOT),
    st.tuples(st.just("end"), SPOT, st.none()),
)


def mutated(data: bytes, changes) -> bytes:
    """The bytes after each change (what, where as a share of the length, with what)."""
    for what, spot, value in changes:
        at = int(spot * len(data))
        if what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif what == "put":
            data = data[:at] + value + data[at:]
        elif what == "over":
            data = data[:at] + value + data[at + len(value) :]
        elif what == "cut":
            data = data[:at] + data[at + int(value * 64) :]
        elif what == "double":
            data = data[:at] + data[at : at + int(value * 256)] * 2 + data[at:]
        elif what == "end":
            data = data[:at]
    return data


# Readers: each is given a folder whose files were mutated, and reads all that there is


def read_jsonl(folder) -> None:
    index = JsonlIndex(folder / "rows.jsonl")
    for row in range(len(index)):
        try:
            parse_sample(*index[row])
        except SampleError as error:
            assert error.where.startswith(f"{folder}/rows.jsonl:")


def read_index(folder) -> None:
    """Of a kept index no damage shows: it is made anew. Its reader by itself says what is damaged."""
    (path,) = folder.glob("cache/rows/*rows.jsonl")
    with suppress(DamagedFile):
        map_block(path)
    index = JsonlIndex(folder / "rows.jsonl")
    assert [index[row][0] for row in range(len(index))] == ROWS


def read_tsv(folder) -> None:
    with TSVReader(folder) as store:
        for name in store.names:
            try:
                store.frames(name)
                store.as_video(name).frames_at([0.5])
            except MediaError:
                continue


def read_frames(folder) -> None:
    with FrameStore(folder / "clips.qvf") as store:
        for row in range(len(store)):
            try:
                store.frames(store.names[row])
                store.as_video(store.names[row]).frames_at([0.5])
            except (MediaError, KeyError):  # a name that was damaged is another name
                continue


def read_tar(folder) -> None:
    source = open_source(str(folder / "x.tar"))
    for row in range(len(source)):
        try:
            source[row]
        except SampleError:
            continue


class Counter:
    """What the sizes of a manifest ask of a processor."""

    media_config = type("", (), {"max_frames": 9})

    def medium_length(self, mark: str, pictures: int) -> int:
        return 3 * pictures


def read_manifest(folder) -> None:
    manifest = Manifest(folder / "manifest.parquet")
    mixture = Mixture([DatasetSpec(str(folder / "rows.jsonl"))])
    table = ManifestSizes(manifest, Counter()).table(mixture, Caps(tokens=20))
    assert len(table["tokens"]) == len(mixture)
    heads = manifest.heads()
    for row in ROWS:
        try:
            heads.video(row["video"])
        except MediaError:
            continue
    for packed in manifest.read("frame_times")["frame_times"].to_pylist():
        unpack_times(packed or b"")


def make_rows(folder) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS))


def make_index(folder) -> None:
    make_rows(folder)
    os.utime(folder / "rows.jsonl", (1e9, 1e9))
    JsonlIndex(folder / "rows.jsonl")


def make_tsv(folder) -> None:
    with TSVWriter(folder) as store:
        for name in ("a", "é東"):
            store.append(name, frames(2))
    (folder / CHAT).write_text("")


def make_frames(folder) -> None:
    with FrameStoreWriter(folder / "clips.qvf", "webp") as store:
        for name in ("a", "é東"):
            store.append(name, frames(2), fps=1.0)


def make_tar(folder) -> None:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number, row in enumerate(ROWS[:3]):
            for name, data in ((f"{number}.json", json.dumps(row).encode()), (f"{number}.mp4", b"x" * 700)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


def make_manifest(folder) -> None:
    make_rows(folder)
    source = JsonlIndex(folder / "rows.jsonl")
    known = {
        "source": 0,
        "slot": 0,
        "text_tokens": 4,
        "kind": "video",
        "pictures": 5,
        "duration": 5.0,
        "fps": 1.0,
    }
    known |= {
        "num_frames": 5,
        "codec": "h264",
        "width": 8,
        "height": 8,
        "frame_times": pack_times(np.arange(5)),
    }
    lines = [dict.fromkeys(SCHEMA) | known | {"row": i, "path": row["video"]} for i, row in enumerate(ROWS)]
    told = {"path": "rows.jsonl", "media_root": None, "licence": None}
    told |= {"fingerprint": source.fingerprint, "num_bytes": source.num_bytes}
    about = {"version": VERSION, "sources": [told], "budgets": [], "processor": None}
    parquet = require("pyarrow.parquet", "data")
    table = parquet.read_table(BytesIO(table_bytes(lines, SCHEMA)))
    with parquet.ParquetWriter(
        folder / "manifest.parquet", schema([], about), write_page_checksum=True
    ) as file:
        file.write_table(table.cast(schema([], about)))


READERS: dict[str, tuple[Callable, Callable, str, tuple]] = {
    "jsonl": (make_rows, read_jsonl, "rows.jsonl", ()),
    "index": (make_index, read_index, "cache/rows/*rows.jsonl", ()),
    "tsv rows": (make_tsv, read_tsv, "imgs.tsv", (MediaError,)),
    "tsv offsets": (make_tsv, read_tsv, "imgs.lineidx", (MediaError,)),
    "tsv names": (make_tsv, read_tsv, "fname2idx.json", (MediaError,)),
    "frame store": (make_frames, read_frames, "clips.qvf", (MediaError,)),
    "tar": (make_tar, read_tar, "x.tar", (MediaError,)),
    "manifest": (make_manifest, read_manifest, "manifest.parquet", (ValueError,)),
}
"""Reader -> what makes valid files, what reads them, the file that is mutated, the errors it documents."""


@contextmanager
def no_hang():
    def tell(*_):
        raise TimeoutError(f"longer than {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_kib() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1])


def fuzz(one: Callable, examples: Path | None, seconds: float) -> None:
    """Call `one` with changes for so long: those of `examples`, with which it failed before, and new ones.
    None: always the same."""
    quiet = settings(
        max_examples=50,
        deadline=None,
        database=examples and DirectoryBasedExampleDatabase(examples),
        suppress_health_check=list(HealthCheck),
    )
    until, round_ = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        test = quiet(given(st.lists(CHANGES, min_size=1, max_size=4))(one))
        (test if examples else seed(round_)(test))()
        round_ += 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(jsonl, "MIN_KEPT_BYTES", 0)
    return tmp_path


@pytest.mark.parametrize("reader", READERS)
def test_mutated_files_give_the_documented_errors_alone(folder, reader, record_property):
    make, read, name, documented = READERS[reader]
    make(folder)
    read(folder)
    (path,) = folder.glob(name)
    whole, met = path.read_bytes(), {"read": 0, "refused": 0}

    def one(changes) -> None:
        path.write_bytes(mutated(whole, changes))
        with no_hang():
            try:
                read(folder)
                met["read"] += 1
            except documented:
                met["refused"] += 1

    before = peak_kib()
    fuzz(one, EXAMPLES and Path(EXAMPLES, reader.replace(" ", "_")), SECONDS)
    record_property("inputs", met)
    print(f"\n{reader}: {met}, {peak_kib() - before} KiB more at the peak")
    assert met["read"] and (met["refused"] or not documented)
    assert peak_kib() - before < GROWTH_KIB
    shutil.rmtree(folder)


def test_what_failed_is_kept_and_tried_first(tmp_path):
    tried = []

    def one(changes) -> None:
        tried.append(changes)
        assert not any(what == "end" for what, *_ in changes)

    for _ in range(2):
        tried.clear()
        with pytest.raises(AssertionError):
            fuzz(one, tmp_path / "examples", 60)
    assert any(what == "end" for what, *_ in tried[0])

"""`data index`: the manifest says what files say; a killed run goes on; sizes are those of opened files."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from media_rows import ROWS, make_media, row
from tiny_world import fresh

from quicksviewer.data.dataset import LazySupervisedDataset, PackedDataset
from quicksviewer.data.ledger import Ledger
from quicksviewer.data.lengths import Heads, size_table
from quicksviewer.data.manifest import KEY, Manifest, tokens_at, unpack_counts, unpack_times
from quicksviewer.data.manifest_media import ManifestMedia, Outdated
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.survey import index, lines
from quicksviewer.utils.packets import read_packets

WIDE = Caps(tokens=10_000)
MORE = [
    row("missing", "<video>\nWhat?", video="nowhere.mp4"),
    row("damaged", "<video>\nWhat?", video="damaged.mp4"),
    row("marks", "<video><video>\nWhat?", video="v0.mp4"),
    row("late", "<video>\nWhat?", video="v0.mp4", start_sec=500.0),
    row("out", "<image>\nWhat?", image="../lengths/small.png"),
    row("long", "Say.", "red " * 400),
    row("free", "<image>\nWhat?", image="small.png", metadata={"licence": "CC0-1.0"}),
]
NOT_JSON = 2
"""Lines at the end of the file that are no rows."""


@pytest.fixture(scope="module")
def world(tiny, tmp_path_factory):
    """Rows of every kind, good and bad, the media, a processor's folder, and the manifest of all."""
    folder = tmp_path_factory.mktemp("index")
    media = folder / "media"
    media.mkdir()
    make_media(media, tiny)
    (media / "damaged.mp4").write_bytes((media / "v0.mp4").read_bytes()[:-2000])
    lines = [json.dumps(record) for record in ROWS + MORE] + ["{", '["a"]']
    (folder / "rows.jsonl").write_text("\n".join(lines))
    processor = fresh(tiny).processor.with_media(max_tiles=4)
    processor.save_pretrained(folder / "model")
    assert run(folder, "--model", folder / "model", "--hash", "sha256") == 0
    return folder


def run(folder, *flags, output="manifest.parquet") -> int:
    words = [folder / "rows.jsonl", "--media_root", folder / "media", "--output", folder / output]
    return index.main([str(word) for word in [*words, "--workers", "0", *flags]])


def mixture_of(folder, text: str = "rows.jsonl") -> Mixture:
    specs = parse_mixture(";".join(str(folder / piece) for piece in text.split(";")))
    return Mixture(replace(spec, media_root=str(folder / "media")) for spec in specs)


def processor_of(folder, **media):
    from quicksviewer.model.processor import QuicksviewerProcessor

    return QuicksviewerProcessor.from_pretrained(folder / "model").with_media(**media)


def same(one, other) -> None:
    for key, value in vars(one).items():
        if key == "unusable":
            assert value == other.unusable
        else:
            assert np.array_equal(value, getattr(other, key)), key


CAPS = [WIDE, Caps(tokens=120), Caps(tokens=60), Caps(tokens=10_000, frames=5), Caps(tokens=1)]


@pytest.mark.parametrize("caps", CAPS, ids=str)
@pytest.mark.parametrize("media", [{}, {"max_frames": 3}, {"fps": 3.0}, {"max_tiles": 0}], ids=str)
def test_sizes_from_the_manifest_are_those_of_opened_media(world, caps, media):
    """With the processor of the manifest from its columns, with another one from the heads in it."""
    mixture, processor = mixture_of(world), processor_of(world, **media)
    same(
        size_table(mixture, processor, caps, manifest=world / "manifest.parquet"),
        size_table(mixture, processor, caps),
    )


def test_no_medium_is_opened(world, monkeypatch):
    monkeypatch.setattr(Heads, "_known", lambda *_: pytest.fail("a medium was opened"))
    for media in ({}, {"fps": 2.0}):
        size_table(mixture_of(world), processor_of(world, **media), WIDE, manifest=world / "manifest.parquet")


def test_repeats_and_slices_of_a_mixture_find_their_rows(world):
    mixture, processor = mixture_of(world, "rows.jsonl#2_9*2.5;rows.jsonl*0.3"), processor_of(world)
    same(
        size_table(mixture, processor, WIDE, manifest=world / "manifest.parquet"),
        size_table(mixture, processor, WIDE),
    )


def test_every_line_says_what_the_file_says(world):
    manifest = Manifest(world / "manifest.parquet")
    lines = manifest.read(*manifest._file.schema_arrow.names).to_pylist()
    assert len(manifest) == len(lines) and len(manifest.starts) - 1 == len(ROWS) + len(MORE) + NOT_JSON
    by_kind = {
        kind: [line for line in lines if line["kind"] == kind and not line["error"]]
        for kind in ("video", "image", None)
    }
    for line in by_kind["video"]:
        packets = read_packets(line["path"])
        assert np.allclose(unpack_times(line["frame_times"]), packets.seconds, atol=1e-6)
        assert unpack_counts(line["key_frames"]).tolist() == np.flatnonzero(packets.is_key).tolist()
        assert line["num_frames"] == len(packets.seconds) and line["codec"] == "h264"
        assert (
            line["bytes"] == os.path.getsize(line["path"])
            and line["changed"] == os.stat(line["path"]).st_mtime_ns
        )
        assert (
            0 < line["decode_megapixels"] <= line["num_frames"] * line["width"] * line["height"] / 1e6 + 1e-9
        )
        assert line["hash"].startswith("sha256:") and len(line["hash"]) == 71
        assert line["where"] == f"{world}/rows.jsonl:{line['row'] + 1}"
    assert [line["licence"] for line in by_kind["image"]][-1] == "CC0-1.0"
    turned = next(line for line in by_kind["image"] if line["sample"] == "turned")
    assert (turned["width"], turned["height"], turned["codec"]) == (60, 300, "JPEG")
    assert {line["sample"] for line in by_kind[None]} == {"text", "long"}


def test_tokens_are_told_at_every_budget(world):
    manifest, processor = Manifest(world / "manifest.parquet"), processor_of(world)
    assert manifest.budgets == [8, 32, 128, 420]
    for line in manifest.read("kind", "pictures", "error", *map(tokens_at, manifest.budgets)).to_pylist():
        for budget in manifest.budgets if line["kind"] and not line["error"] else ():
            pictures = min(line["pictures"], budget) if line["kind"] == "video" else line["pictures"]
            assert line[tokens_at(budget)] == processor.medium_length(f"<{line['kind']}>", pictures)


def test_what_cannot_be_used_says_why(world):
    manifest = Manifest(world / "manifest.parquet")
    lines = [line for line in manifest.read("sample", "where", "error").to_pylist() if line["error"]]
    found = {line["sample"] or line["where"].rpartition(":")[2]: line["error"] for line in lines}
    first = len(ROWS) + len(MORE) + 1
    expected = {
        "missing": "no such file", "damaged": "truncated", str(len(ROWS) + 3): "but 1 videos",
        "late": "start=500.0",
        "out": "'..' in a path", str(first): "not readable as JSON", str(first + 1): "must be an object",
    }  # fmt: skip
    assert len(found) == len(expected)
    for name, reason in expected.items():
        assert reason in found[name], name


def test_a_killed_run_goes_on_and_probes_nothing_twice(world, monkeypatch):
    """In another process, so that the kill is real; what is there by then is not made again."""
    command = [sys.executable, "-m", "quicksviewer.survey.index", str(world / "rows.jsonl")]
    command += [
        "--media_root",
        str(world / "media"),
        "--output",
        str(world / "killed.parquet"),
        "--workers",
        "0",
    ]
    parts = world / "killed.parquet.parts"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(parts.glob("rows-*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.iterdir() if path.name.startswith("rows-")}
    assert kept and not (world / "killed.parquet").exists()
    made = []
    monkeypatch.setattr(index, "rows_bytes", lambda piece: made.append(piece) or pytest.fail("made again"))
    assert run(world, output="killed.parquet") == 0 and not made and not parts.exists()
    whole, other = (
        Manifest(world / name).read("row", "path", "error", "width")
        for name in ("killed.parquet", "manifest.parquet")
    )
    assert whole["path"].equals(other["path"]) and whole["width"].equals(other["width"])


def test_pieces_of_other_settings_are_not_taken(world, capsys):
    shutil.copytree(world / "media", world / "again.parquet.parts" / "x")
    (world / "again.parquet.parts" / "plan.json").write_text("{}")
    assert run(world, output="again.parquet") == 2 and "remove it to begin anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--budgets", "0"], ["--workers", "-1"], ["--registry", "none.yaml"]], ids=str
)
def test_wrong_usage_is_told(world, flags, capsys):
    assert run(world, *flags, output="wrong.parquet") == 2 and capsys.readouterr().err.startswith("error: ")


def test_a_manifest_of_other_rows_is_refused(world, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps(ROWS[0]))
    mixture = Mixture(parse_mixture(str(tmp_path / "other.jsonl")))
    with pytest.raises(ValueError, match=r"nothing of .*other\.jsonl as it is now"):
        size_table(mixture, processor_of(world), WIDE, manifest=world / "manifest.parquet")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda source: source.pop("num_bytes"), "num_bytes"),
        (lambda source: source.update(num_bytes="many"), "num_bytes"),
        (lambda source: source.update(nim_bytes=1), "nim_bytes"),
    ],
)
def test_a_manifest_with_a_damaged_head_is_refused(world, tmp_path, change, told):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(world / "manifest.parquet")
    about = json.loads(table.schema.metadata[KEY])
    change(about["sources"][0])
    parquet.write_table(table.replace_schema_metadata({KEY: json.dumps(about)}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=rf"other\.parquet is no manifest that can be used: .*{told}"):
        Manifest(tmp_path / "other.parquet")


# --- media that are no longer what the manifest says ---


@pytest.fixture
def own(world, tmp_path):
    """A copy of the world that may be changed, with a manifest of it; only rows that can be used."""
    shutil.copytree(world / "media", tmp_path / "media")
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in ROWS))
    assert run(tmp_path, "--model", tmp_path / "model") == 0
    return tmp_path


def known(folder) -> ManifestMedia:
    return ManifestMedia(Manifest(folder / "manifest.parquet"), mixture_of(folder))


def heeding(folder) -> LazySupervisedDataset:
    data = LazySupervisedDataset(
        mixture_of(folder), processor_of(folder), 10_000, quarantine=folder / "ledger.jsonl"
    )
    data.heed(known(folder))
    return data


VIDEO = [record["uid"] for record in ROWS].index("video")


def test_a_changed_medium_blames_the_manifest(own):
    path, manifest = own / "media" / "v0.mp4", own / "manifest.parquet"
    whole = path.read_bytes()
    expected = heeding(own).load(VIDEO)["input_ids"]
    path.write_bytes(whole + b"\0" * 8)
    with pytest.raises(Outdated) as caught:
        heeding(own).load(VIDEO)
    told = (
        f"{path} has changed since: it had {len(whole)} bytes, now {len(whole) + 8}; {manifest} is outdated"
    )
    assert told in str(caught.value) and "`quicksviewer data index`" in str(caught.value)
    path.write_bytes(whole)  # a copy: another time, the same contents
    assert heeding(own).load(VIDEO)["input_ids"] == expected
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(Outdated, match="no hash says that it is the same"):
        heeding(own).load(VIDEO)


def test_a_manifest_that_is_made_anew_is_believed(own):
    """The ledger's line about the old one holds no longer."""
    (own / "media" / "v0.mp4").write_bytes((own / "media" / "v1.mp4").read_bytes())
    first = heeding(own)
    first[VIDEO]
    (bad,) = Ledger(own / "ledger.jsonl")
    assert "is outdated" in bad.reason and bad.uid == "video"
    again = heeding(own)
    assert again.ledger.known(bad.where, again.mixture[VIDEO][0], again.judges)
    assert run(own, "--model", own / "model") == 0
    assert heeding(own).load(VIDEO)["groups"]


def test_packs_and_costs_know_what_is_decoded(own):
    """Of all of a video what the manifest says, of a clip its share, of an image its pixels."""
    manifest, media = Manifest(own / "manifest.parquet"), known(own)
    lines = manifest.read("row", "duration", "decode_megapixels", "start", "end").to_pylist()
    expected = np.zeros(len(ROWS))
    for line in lines:
        share = (line["end"] - line["start"]) / line["duration"] if line["start"] else 1
        expected[line["row"]] += (line["decode_megapixels"] or 0) * share
    assert np.allclose(media.megapixels_N, expected) and 0 < expected[VIDEO + 1] < expected[VIDEO]
    processor = processor_of(own)
    table = size_table(mixture_of(own), processor, WIDE, manifest=own / "manifest.parquet")
    packed = PackedDataset(mixture_of(own), processor, WIDE, table)
    assert packed.megapixels is None
    packed.heed(media)
    assert packed.megapixels.sum() == pytest.approx(expected.sum()) and len(packed.megapixels) == len(packed)


def test_a_picture_in_the_row_can_be_indexed(world, tmp_path):
    picture = base64.b64encode((world / "media" / "small.png").read_bytes()).decode()
    shown = row("in", "<image>\nWhat?", image=f"data:image/png;base64,{picture}")
    (tmp_path / "rows.jsonl").write_text(json.dumps(shown))
    shutil.copytree(world / "model", tmp_path / "model")
    assert run(tmp_path, "--model", tmp_path / "model") == 0
    (line,) = Manifest(tmp_path / "manifest.parquet").read("error", "width", "bytes").to_pylist()
    assert line["error"] is None and line["width"] == 40
    assert heeding(tmp_path).load(0)["input_ids"]


def test_a_row_whose_id_is_taken_is_refused(own):
    lines._source.cache_clear()
    again = {**ROWS[VIDEO], "conversations": ROWS[0]["conversations"], "video": None}
    (own / "rows.jsonl").write_text("\n".join(json.dumps(record) for record in [*ROWS, again]))
    for flags, bad in (([], [f"{own}/rows.jsonl:{len(ROWS) + 1}"]), (["--duplicates", "keep"], [])):
        assert run(own, "--model", own / "model", *flags) == 0
        table = size_table(mixture_of(own), processor_of(own), WIDE, manifest=own / "manifest.parquet")
        expected = [f"{where}: uid 'video' is that of row {VIDEO} (from 0)" for where in bad]
        assert list(table.unusable.values()) == expected

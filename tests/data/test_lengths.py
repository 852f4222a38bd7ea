"""Lengths known beforehand are real, for every kind of row; what does not fit is reduced or told."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from media_rows import ROWS, make_media, row
from tiny_world import fresh

from quicksviewer.data.dataset import LazySupervisedDataset
from quicksviewer.data.lengths import Heads, size_table
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.data.sampler import MODALITIES
from quicksviewer.utils.data_util import MediaError

WIDE = Caps(tokens=10_000)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Videos and pictures of several sizes, one of them lying on its side."""
    return make_media(tmp_path_factory.mktemp("lengths"), tiny)


def mixture_of(folder, rows) -> Mixture:
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (spec,) = parse_mixture(str(folder / "rows.jsonl"))
    return Mixture([replace(spec, media_root=str(folder))])


def processor_with(tiny, **media):
    return fresh(tiny).processor.with_media(**media)


@pytest.mark.parametrize(
    "media", [{}, {"fps": 3.0}, {"max_frames": 3}, {"max_tiles": 6}, {"fps": 0.1}], ids=str
)
def test_predicted_is_real_for_every_kind_of_row(tiny, folder, media):
    mixture, processor = mixture_of(folder, ROWS), processor_with(tiny, **media)
    table = size_table(mixture, processor, WIDE)
    data = LazySupervisedDataset(mixture, processor, 10_000, table=table)
    for index, record in enumerate(ROWS):
        real = data.load(index)
        assert table.tokens[index] == len(real["input_ids"]), record["uid"]
        assert table.frames[index] == sum(real.get("medium_frames", [])), record["uid"]
        assert real["groups"] == [("source/rows", f"modality/{MODALITIES[table.modality[index]]}")]
    assert not table.unusable and not len(table.reduced)


def test_predicted_is_real_for_all_of_the_embedded_world(tiny):
    names = ("captions", "questions", "images", "texts")
    found = [p for p in sorted((tiny / "data").glob("*.jsonl")) if p.stem in names]
    assert found
    specs = [replace(parse_mixture(str(path))[0], media_root=str(tiny / "data")) for path in found]
    mixture, processor = Mixture(specs), processor_with(tiny, max_tiles=4)
    table = size_table(mixture, processor, WIDE)
    data = LazySupervisedDataset(mixture, processor, 10_000, table=table)
    real = [len(data.load(index)["input_ids"]) for index in range(len(mixture))]
    assert table.tokens.tolist() == real and not table.unusable


def test_what_is_too_large_is_given_fewer_frames_and_no_fewer_than_needed(tiny, folder):
    mixture, processor = mixture_of(folder, ROWS), processor_with(tiny, fps=4.0)
    wide = size_table(mixture, processor, WIDE)
    tight = Caps(tokens=int(wide.tokens[4] * 0.6), frames=40)
    table = size_table(mixture, processor, tight)
    assert 4 in table.reduced and (table.tokens <= tight.tokens).all() and (table.frames <= 40).all()
    data = LazySupervisedDataset(mixture, processor, tight.tokens, table=table)
    free = LazySupervisedDataset(mixture, processor, WIDE.tokens)
    for index in table.reduced:
        real = data.load_at(int(index))
        assert len(real["input_ids"]) == table.tokens[index] <= tight.tokens
        more = free.load(int(index), int(table.max_frames[index]) + 1)
        assert len(more["input_ids"]) > tight.tokens or sum(more["medium_frames"]) > 40
    rest = [i for i in range(len(ROWS)) if i not in table.reduced and i not in table.unusable]
    assert (table.tokens[rest] == wide.tokens[rest]).all()


def test_what_cannot_be_used_is_listed_with_its_reason(tiny, folder):
    rows = [
        row("long", "Say.", "red " * 400),
        row("missing", "<video>\nWhat?", video="nowhere.mp4"),
        row("marks", "<video><video>\nWhat?", video="v0.mp4"),
        row("good", "Say."),
    ]
    table = size_table(mixture_of(folder, rows), processor_with(tiny), Caps(tokens=60))
    assert set(table.unusable) == {0, 1, 2} and table.tokens[3] > 0
    assert "rows.jsonl:1" in table.unusable[0] and "60 tokens" in table.unusable[0]
    assert "nowhere.mp4" in table.unusable[1] and "rows.jsonl:3" in table.unusable[2]


def test_a_table_is_read_back_and_heads_are_looked_at_once(tiny, folder, tmp_path, monkeypatch):
    looked = []
    probe = Heads._probe
    monkeypatch.setattr(Heads, "_probe", lambda self, path: looked.append(path) or probe(self, path))
    mixture, processor = mixture_of(folder, ROWS), processor_with(tiny)
    first = size_table(mixture, processor, WIDE, tmp_path)
    assert len(looked) == 3
    again = size_table(mixture, processor, WIDE, tmp_path)
    for key, value in vars(first).items():
        assert np.array_equal(value, getattr(again, key)) if key != "unusable" else value == again.unusable
    other = size_table(mixture, processor, Caps(tokens=9_000), tmp_path)
    assert len(looked) == 3 and other.tokens.tolist() == first.tokens.tolist()
    assert (
        size_table(mixture, processor_with(tiny, fps=2.0), WIDE, tmp_path).frames.sum() > first.frames.sum()
    )


def test_a_file_that_has_changed_is_looked_at_again(folder, tmp_path):
    path = tmp_path / "v.mp4"
    shutil.copy(folder / "v0.mp4", path)
    heads = Heads(tmp_path / "heads.sqlite")
    first = heads.video(str(path))
    shutil.copy(folder / "v1.mp4", path)
    assert heads.video(str(path)) != first or (folder / "v0.mp4").stat().st_size == path.stat().st_size
    path.unlink()
    with pytest.raises(MediaError, match="no such file"):
        heads.video(str(path))

"""Videos on which the decoder hangs, crashes or eats memory, in a run: measuring and training go on (F12)."""

import json
from dataclasses import replace

import numpy as np
import pytest
from child_checks import LIMIT, named
from clip_files import write_clip
from torch.utils.data import DataLoader

from quicksviewer.data.dataset import BadSamplePolicy, LazySupervisedDataset, PackedDataset
from quicksviewer.data.lengths import size_table
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.data.packing import Caps
from quicksviewer.utils import data_util, decode_pool

pytestmark = pytest.mark.usefixtures("evil", "nothing_is_left")

ROWS = [f"good_{number}.mp4" for number in range(12)]
ROWS[1], ROWS[3], ROWS[5] = "hang_frames.mp4", "crash_open.mp4", "eat_frames.mp4"


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory):
    """A data set of which three videos make the decoder hang, crash and eat memory."""
    from tiny_world import fresh

    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number, name in enumerate(ROWS):
        write_clip(folder / name, gop=5)
        said = {"data_type": "caption", "video": name, "caption": f"clip {number}"}
        lines.append({"uid": str(number), **said})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, fresh(tiny).processor


def mixture_of(folder, name="rows.jsonl"):
    (spec,) = parse_mixture(str(folder / name))
    return Mixture([replace(spec, media_root=str(folder))])


def with_limits(processor, decoder):
    bounds = {"isolation": "process", "decode_seconds": LIMIT, "decode_memory_mib": 256}
    return processor.with_media(decoder=decoder, fps=4.0, **bounds)


def dataset(rows, decoder, ledger):
    folder, processor = rows
    media, policy = with_limits(processor, decoder), BadSamplePolicy(max_share=0.9)
    return LazySupervisedDataset(mixture_of(folder), media, 400, policy, folder / ledger)


def test_sizes_are_measured_in_a_child(rows, monkeypatch):
    """As --pack does before the first step: three videos misbehave when they are opened."""
    folder, processor = rows
    names = ["good_0.mp4", "hang_open.mp4", "good_1.mp4", "crash_open.mp4", "eat_open.mp4", "good_2.mp4"]
    lines = []
    for number, name in enumerate(names):
        named(folder / "good_0.mp4", name)
        said = {"data_type": "caption", "video": name, "caption": f"clip {number}"}
        lines.append(json.dumps({"uid": str(number), **said}) + "\n")
    (folder / "measured.jsonl").write_text("".join(lines))
    mixture, caps = mixture_of(folder, "measured.jsonl"), Caps(tokens=400)
    started = counted_starts(monkeypatch)
    table = size_table(mixture, with_limits(processor, "evil"), caps)
    honest = size_table(mixture, with_limits(processor, "av"), caps)
    reasons = {1: "took longer than 2 s", 3: "crashed (SIGSEGV)", 4: "needs more memory"}
    assert set(table.unusable) == set(reasons) and not honest.unusable
    assert all(reason in table.unusable[index] for index, reason in reasons.items())
    assert [int(n) for n in table.tokens] == [0 if i in reasons else n for i, n in enumerate(honest.tokens)]
    assert len(started) == 1 + len(reasons)  # one for all, and one more for each that it died of
    policy = BadSamplePolicy(max_share=0.9)
    packs = PackedDataset(mixture, with_limits(processor, "evil"), caps, table, policy)
    assert sorted(np.concatenate([packs.packs[i] for i in range(len(packs))]).tolist()) == [0, 2, 5]


def counted_starts(monkeypatch) -> list:
    """A list that grows by one for each child that is started."""
    started, start = [], decode_pool.DecodeChild
    monkeypatch.setattr(decode_pool, "DecodeChild", lambda reader: started.append(reader) or start(reader))
    return started


def test_what_ended_at_a_limit_is_looked_at_once_and_never_banned_whole(rows, monkeypatch):
    """A busy machine is no fault of a video: another clip of it, other limits or another version may do."""
    data = dataset(rows, "evil", "once.jsonl")
    looks, opened = [], data_util.open_medium
    monkeypatch.setattr(data_util, "open_medium", lambda ref, *a: looks.append(str(ref)) or opened(ref, *a))
    for index in (1, 3, 5):
        data[index]
    lines = [json.loads(line) for line in (rows[0] / "once.jsonl").read_text().splitlines()]
    assert [line["uid"] for line in lines] == ["1", "3", "5"]
    assert not any(line["is_whole"] for line in lines)
    assert [sum(name in look for look in looks) for name in (ROWS[1], ROWS[3], ROWS[5])] == [1, 1, 1]
    assert all(data.ledger.known_medium(line["path"], data.judges) is None for line in lines)
    again = LazySupervisedDataset(data.mixture, data.processor.with_media(decode_seconds=9.0), 400)
    again.ledger = data.ledger
    assert all(data.ledger.known(line["where"], None, data.judges) is not None for line in lines)
    assert all(data.ledger.known(line["where"], None, again.judges) is None for line in lines)


def test_a_run_goes_on_past_them_in_the_same_order(rows):
    """In a forked worker: every place of the run has a row, and the three bad ones stand in the ledger."""
    data = dataset(rows, "evil", "forked.jsonl")
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    seen = list(loader)
    bad = [json.loads(line) for line in (rows[0] / "forked.jsonl").read_text().splitlines()]
    assert sorted(line["uid"] for line in bad) == ["1", "3", "5"]
    honest = dataset(rows, "av", "honest.jsonl")
    stands_in = {bad: data.policy.next_index(bad, 1, len(ROWS)) for bad in (1, 3, 5)}
    assert len(seen) == len(ROWS) and all("good" in ROWS[index] for index in stands_in.values())
    for place, row in enumerate(seen):
        expected = honest.load(stands_in.get(place, place))
        assert row["input_ids"] == expected["input_ids"]
        assert np.array_equal(row["pixel_values"], expected["pixel_values"])


def test_workers_that_are_spawned_decode_too(rows):
    data = dataset(rows, "av", "spawned.jsonl")
    one = [data[index] for index in (0, 1)]
    loader = DataLoader(data, batch_size=None, num_workers=1, sampler=[0, 1], multiprocessing_context="spawn")
    for here, there in zip(one, loader, strict=True):
        assert np.array_equal(here["pixel_values"], there["pixel_values"])

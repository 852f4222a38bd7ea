"""Packed rows: a sample loses and learns what it would alone, sees no other, and none is lost."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_lengths import ROWS, folder, mixture_of, row  # noqa: F401 (folder is a fixture)
from tiny_world import BACKBONES, fresh

from quicksviewer.data.collator import WEIGHTINGS, DataCollatorForSupervisedDataset
from quicksviewer.data.dataset import BadSamplePolicy, LazySupervisedDataset, PackedDataset
from quicksviewer.data.lengths import size_table
from quicksviewer.data.packing import Caps
from quicksviewer.data.preprocess import SampleError

CAPS = Caps(tokens=400, frames=40)


@pytest.fixture(params=BACKBONES)
def loaded(request, tiny):
    return fresh(tiny, request.param)


def packed(loaded, mixture, caps=CAPS, **policy) -> PackedDataset:
    table = size_table(mixture, loaded.processor, caps)
    return PackedDataset(mixture, loaded.processor, caps, table, BadSamplePolicy(**policy))


def run(model, batch, count):
    """Loss over `count` items and gradients, without the batch's groups."""
    model.zero_grad()
    batch = {key: value for key, value in batch.items() if key != "groups"}
    out = model(**batch, num_items_in_batch=torch.tensor(float(count)))
    (out.loss + 0.01 * out.gate_penalty / count).backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_sample_is_in_one_pack_and_its_row_is_as_planned(loaded, folder):  # noqa: F811
    mixture = mixture_of(folder, ROWS)
    data, alone = packed(loaded, mixture), LazySupervisedDataset(mixture, loaded.processor, 400)
    assert sorted(data.packs.samples.tolist()) == list(range(len(ROWS))) and len(data) < len(ROWS)
    assert (data.sizes <= CAPS.as_row()).all()
    for number in range(len(data)):
        pack, rows = data[number], [alone.load(int(index)) for index in data.packs[number]]
        assert pack["input_ids"] == [token for one in rows for token in one["input_ids"]]
        assert pack["segment_ids"] == [n for n, one in enumerate(rows, 1) for _ in one["input_ids"]]
        assert pack["position_ids"] == [place for one in rows for place in range(len(one["input_ids"]))]
        assert pack["groups"] == [one["groups"][0] for one in rows]
        with_media = [one["pixel_values"] for one in rows if "pixel_values" in one]
        assert torch.equal(pack["pixel_values"], torch.cat(with_media)) if with_media else True
        assert len(pack["input_ids"]) == data.sizes[number, 0]


def test_a_packed_row_has_the_loss_and_the_gradients_of_its_samples(loaded, folder):  # noqa: F811
    """P19. The gate's penalty is part of it, so that the gradients of every part are compared."""
    mixture, model = mixture_of(folder, ROWS), loaded.model.train()
    data, alone = packed(loaded, mixture), LazySupervisedDataset(mixture, loaded.processor, 400)
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
    batch = collate([data[number] for number in range(len(data))])
    count = (batch["labels"] != -100).sum()
    out, found = run(model, batch, count)
    total, wanted = 0.0, {}
    for index in range(len(ROWS)):
        one, grads = run(model, collate([alone.load(index)]), count)
        total += one.loss.item()
        wanted = {name: wanted.get(name, 0) + grad for name, grad in grads.items()}
    assert out.loss.item() == pytest.approx(total, rel=1e-6)
    assert found.keys() == wanted.keys()
    size = max(grad.norm() for grad in wanted.values())
    for name, grad in found.items():
        assert (grad - wanted[name]).norm() <= 1e-5 * wanted[name].norm() + 1e-6 * size, name


def test_a_sample_is_untouched_by_its_neighbours(loaded, folder):  # noqa: F811
    """Other words in one sample change the logits of the others by exactly nothing."""
    mixture, model = mixture_of(folder, [ROWS[0], ROWS[1], ROWS[5]]), loaded.model.eval()
    pack = packed(loaded, mixture)[0]
    batch = DataCollatorForSupervisedDataset(loaded.processor.pad_id)([pack])
    del batch["groups"]
    learned = batch["labels"] != -100
    for number in (1, 2, 3):
        own = batch["segment_ids"] == number
        words = (batch["input_ids"][own & learned] * 7 + 3) % 200
        changed = batch["input_ids"].masked_scatter(own & learned, words)
        with torch.no_grad():
            before, after = model(**batch).logits, model(**batch | {"input_ids": changed}).logits
        assert torch.equal(before[~own], after[~own]) and not torch.equal(before[own], after[own])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_count_samples_as_they_say(loaded, folder, weighting):  # noqa: F811
    mixture = mixture_of(folder, ROWS)
    alone, data = LazySupervisedDataset(mixture, loaded.processor, 400), packed(loaded, mixture)
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id, weighting)
    one, many = collate([alone[i] for i in range(len(ROWS))]), collate([data[i] for i in range(len(data))])
    if weighting == "token":
        assert "loss_weights" not in one
        return
    targets = (one["labels"] != -100).sum(dim=1).float()
    wanted = torch.ones(len(ROWS)) if weighting == "sample" else targets.sqrt()
    torch.testing.assert_close(one["loss_weights"].sum(dim=1), wanted)
    torch.testing.assert_close(many["loss_weights"].sum(), wanted.sum())
    torch.testing.assert_close(many["loss_weights"].unique(), one["loss_weights"].unique())


def test_a_bad_sample_leaves_its_pack_and_a_record(loaded, folder, tmp_path):  # noqa: F811
    rows = [
        *ROWS[:4],
        row("missing", "<video>\nWhat?", video="nowhere.mp4"),
        row("later", "<image>?", image="x.png"),
    ]
    (folder / "x.png").write_bytes((folder / "small.png").read_bytes())
    mixture = mixture_of(folder, rows)
    table = size_table(mixture, loaded.processor, CAPS)
    (folder / "x.png").unlink()
    quarantine = tmp_path / "quarantine.jsonl"
    data = PackedDataset(mixture, loaded.processor, CAPS, table, BadSamplePolicy(max_share=0.5), quarantine)
    seen = [data[number] for number in range(len(data))]
    assert sum(len(pack["groups"]) for pack in seen) == 4
    records = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert {record["index"] for record in records} == {4, 5}


def test_a_medium_that_changed_since_is_noticed(loaded, folder):  # noqa: F811
    mixture = mixture_of(folder, ROWS)
    table = size_table(mixture, loaded.processor, CAPS)
    wrong = replace(table, tokens=np.where(np.arange(len(ROWS)) == 3, table.tokens + 1, table.tokens))
    data = PackedDataset(mixture, loaded.processor, CAPS, wrong, BadSamplePolicy(replace=False))
    with pytest.raises(SampleError, match="a medium has changed"):
        [data[number] for number in range(len(data))]


def test_without_replacements_the_first_bad_row_ends_it(loaded, folder):  # noqa: F811
    mixture = mixture_of(folder, [ROWS[0], row("missing", "<video>\nWhat?", video="nowhere.mp4")])
    with pytest.raises(SampleError, match="1 of 2 rows cannot be used.*nowhere.mp4"):
        packed(loaded, mixture, replace=False)

"""With features on disk a run is the same run, looks at no medium twice, and never takes stale ones."""

import contextlib
import dataclasses
import json
import os
import subprocess
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import ROOT, command, run
from tiny_world import fresh

from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.data.dataset import LazySupervisedDataset, join_rows
from quicksviewer.data.features import FeatureStore, Seen, tower_digest
from quicksviewer.data.mixture import Mixture, parse_mixture
from quicksviewer.train.features import FeatureCache, check_features, check_no_team


@pytest.fixture
def medium(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"12345")
    return path


def seen(seed: int = 0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    return Seen(torch.randn(3, 4, 5, generator=generator), torch.arange(3.0))


# --- the store ---


def test_what_is_kept_is_found_bit_for_bit(tmp_path, medium):
    store = FeatureStore(tmp_path / "store", tower="a")
    key = store.key(medium)
    assert store.find(key) is None
    store.keep(key, seen())
    found = FeatureStore(tmp_path / "store", tower="a").find(key)
    assert torch.equal(found.tokens, seen().tokens) and torch.equal(found.times, seen().times)
    assert found.tokens.dtype == seen().tokens.dtype


def test_every_change_of_medium_request_tower_size_or_dtype_has_another_place(tmp_path, medium):
    def place(store=None, path=medium, **request):
        store = store or FeatureStore(tmp_path, tower="a", size=64, dtype="torch.float32")
        return store._path(store.key(path, **request))

    other = {"tower": "b", "size": 32, "dtype": "torch.bfloat16", "media": {"fps": 2}}
    given = {"tower": "a", "size": 64, "dtype": "torch.float32"}
    places = [place(), place(at=(0, 1)), place(at=(0, 2)), place(at=(0, 1, (0.5,)))]
    places += [place(FeatureStore(tmp_path, **given | {name: value})) for name, value in other.items()]
    os.utime(medium, ns=(1, 1))
    places.append(place())
    medium.write_bytes(b"123456")
    os.utime(medium, ns=(1, 1))
    places.append(place())
    copy = tmp_path / "b.mp4"
    copy.write_bytes(b"123456")
    os.utime(copy, ns=(1, 1))
    places.append(place(path=copy))
    assert len(set(places)) == len(places)
    assert place() == place()


def test_a_write_that_fails_leaves_nothing(tmp_path, medium, monkeypatch):
    store = FeatureStore(tmp_path / "store", tower="a")
    key = store.key(medium)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        store.keep(key, seen())
    assert store.find(key) is None
    assert [p for p in (tmp_path / "store").rglob("*") if p.is_file()] == []


def test_a_damaged_file_counts_as_not_there(tmp_path, medium):
    store = FeatureStore(tmp_path / "store", tower="a")
    key = store.key(medium)
    store.keep(key, seen())
    path = store._path(key)
    path.write_bytes(path.read_bytes()[:-7])
    assert store.find(key) is None and not path.exists()
    store.keep(key, seen(1))
    assert torch.equal(store.find(key).tokens, seen(1).tokens)


def test_the_digest_of_a_tower_is_of_weights_config_and_dtype(tiny):
    tower = fresh(tiny).model.vision_tower
    digests = [tower_digest(tower), tower_digest(fresh(tiny, tower="clip").model.vision_tower)]
    digests.append(tower_digest(fresh(tiny, tower="siglip").model.vision_tower.bfloat16()))
    assert tower_digest(fresh(tiny).model.vision_tower) == digests[0]
    with torch.no_grad():
        next(tower.parameters()).view(-1)[0] += 1e-6
    digests.append(tower_digest(tower))
    tower.config = dataclasses.replace(tower.config, post_layernorm=not tower.config.post_layernorm)
    digests.append(tower_digest(tower))
    assert len(set(digests)) == len(digests)


# --- batches ---


def dataset_of(tiny, loaded) -> LazySupervisedDataset:
    """Two videos, two images and a text."""
    rows = []
    for name, count in (("captions", 2), ("images", 2), ("texts", 1)):
        path = tiny / f"data/{name}.jsonl"
        rows += [json.loads(line) for line in path.read_text().splitlines()[:count]]
    for row in rows:
        for key in {"video", "image"} & set(row):
            paths = [row[key]] if isinstance(row[key], str) else row[key]
            row[key] = [str(tiny / "data" / path) for path in paths]
    path = tiny / "features.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LazySupervisedDataset(Mixture(parse_mixture(str(path), None)), loaded.processor, 4096)


def count_tower(model) -> list[int]:
    """Frames of each later call of the tower."""
    calls = []
    model.vision_tower.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return calls


def loss_of(model, batch) -> torch.Tensor:
    batch = {key: value for key, value in batch.items() if key != "groups"}
    return model(**batch, noise_generator=torch.Generator().manual_seed(0)).loss


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stored_first", [(), (1,), (0, 3), (0, 1, 2, 3)])
def test_the_loss_is_the_same_whatever_is_stored(tiny, tmp_path, stored_first, packed):
    loaded = fresh(tiny)
    model, data = loaded.model.train(), dataset_of(tiny, loaded)
    model.vision_tower.requires_grad_(False)
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)

    def batch(indices=range(5)):
        rows = [data.load(index) for index in indices]
        return collate([join_rows(rows)] if packed else rows)

    plain = loss_of(model, batch())
    data.features = FeatureStore(tmp_path, tower=tower_digest(model.vision_tower))
    cache = FeatureCache(model.vision_tower, data.features)
    if stored_first:
        cache.complete(batch(stored_first), contextlib.nullcontext)
    calls = count_tower(model)
    cached = loss_of(model, cache.complete(batch(), contextlib.nullcontext))
    if stored_first:  # the tower saw frames in other batches, which changes the order of its sums
        assert torch.allclose(cached, plain, rtol=1e-6, atol=0)
    else:
        assert torch.equal(cached, plain)
    assert bool(calls) == (len(stored_first) < 4)
    again = loss_of(model, cache.complete(batch(), contextlib.nullcontext))
    assert torch.equal(again, cached) and len(calls) <= 1


def test_a_batch_without_videos_has_its_stand_in(tiny, tmp_path):
    loaded = fresh(tiny)
    model, data = loaded.model.train(), dataset_of(tiny, loaded)
    model.vision_tower.requires_grad_(False)
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
    plain = loss_of(model, collate([data.load(2), data.load(4)]))
    data.features = FeatureStore(tmp_path, tower="a")
    cache = FeatureCache(model.vision_tower, data.features)
    batch = cache.complete(collate([data.load(2), data.load(4)]), contextlib.nullcontext)
    assert batch["pixel_values"].ndim == 3
    assert torch.allclose(loss_of(model, batch), plain, rtol=1e-6, atol=0)


def test_a_stored_medium_is_not_decoded_and_a_changed_one_is(tiny, tmp_path, monkeypatch):
    loaded = fresh(tiny)
    data = dataset_of(tiny, loaded)
    data.features = FeatureStore(tmp_path, tower="a")
    cache = FeatureCache(loaded.model.vision_tower, data.features)
    collate = DataCollatorForSupervisedDataset(loaded.processor.pad_id)
    cache.complete(collate([data.load(0)]), contextlib.nullcontext)
    decoded = []
    load = loaded.processor.load
    monkeypatch.setattr(loaded.processor, "load", lambda *args: decoded.append(args) or load(*args))
    kept = data.load(0)
    assert decoded == [] and kept["stored_media"][0][2] and len(kept["pixel_values"]) == 0
    data.load(1)
    assert len(decoded) == 1
    os.utime(data.mixture[0][0]["video"][0])
    assert not data.load(0)["stored_media"][0][2] and len(decoded) == 2


# --- runs ---


def test_a_run_with_features_on_disk_has_the_losses_of_one_without(recipe, tmp_path):
    flags = ["--per_device_train_batch_size", "4"]
    plain = run(recipe, tmp_path / "plain", 1, *flags, stage="stage1")
    flags += ["--feature_cache", str(tmp_path / "features")]
    for name in ("filling", "filled"):
        logs = run(recipe, tmp_path / name, 1, *flags, stage="stage1")
        for ours, reference in zip(logs, plain, strict=True):
            assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-6)
            assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 4  # the videos of the recipe


@pytest.mark.parametrize(
    ("stage", "parts"), [("stage2", None), ("stage3", "llm"), ("stage1", "vision_tower")]
)
def test_a_tower_that_learns_is_refused(stage, parts):
    def asked(stage, parts):
        model = SimpleNamespace(lora_enable=parts is not None, lora_parts=parts)
        return SimpleNamespace(stage=stage, model=model, training=SimpleNamespace(feature_cache="features"))

    check_features(asked("stage1", "llm"))
    with pytest.raises(ValueError, match=f"{stage} trains it"):
        check_features(asked(stage, parts))


def test_a_sharded_tower_and_a_team_are_refused(recipe, tmp_path):
    flags = ["--feature_cache", str(tmp_path / "f"), "--deepspeed", str(ROOT / "zero3.json")]
    words = command(recipe, tmp_path / "out", 1, *flags, stage="stage1")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "not ZeRO-3" in done.stderr, done.stderr[-2000:]
    run_ = SimpleNamespace(training=SimpleNamespace(feature_cache="features"))
    with pytest.raises(ValueError, match="sequence parallelism"):
        check_no_team(run_, 2)

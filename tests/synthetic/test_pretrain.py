"""The warm-ups: what the tower and the language model are shown, and that steps, not clocks, decide."""

import shutil

import numpy as np
import pytest
import torch
from tiny_world import BACKBONES, CORPUS, TOWERS, WORLD, fresh
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from quicksviewer.data.preprocess import parse_sample
from quicksviewer.synthetic import pretrain
from quicksviewer.synthetic.corpus import rng_of, text_row
from quicksviewer.synthetic.pretrain import (
    LABELS,
    PLACES,
    PretrainConfig,
    _average_gradients,
    picture,
    text_batch,
    warm_language_model,
    warm_tower,
)
from quicksviewer.synthetic.video import draw_frame
from quicksviewer.synthetic.world import BACKGROUNDS, COLOURS, MOTIONS, draw_world
from quicksviewer.utils.registry import load_target

CONFIG = PretrainConfig(tower_steps=2, tower_batch=4, lm_steps=2, lm_batch=4)


def weights(folder, auto) -> dict:
    return auto.from_pretrained(folder).state_dict()


def differing(one: dict, other: dict) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


# --- pictures ---


def told(classes: list[int]) -> dict:
    return {name: LABELS[name][place] for name, place in zip(LABELS, classes, strict=True)}


def test_a_picture_is_named_by_what_is_on_it():
    for index in range(200):
        pixels, classes = picture(index, WORLD)
        label = told(classes)
        own = np.argwhere((pixels == COLOURS[label["colour"]]).all(-1))
        ground = (pixels == BACKGROUNDS[label["background"]]).all(-1)
        assert len(own) > 100 and ground[[0, 0, -1], [0, -1, -1]].all()
        centre = (own.min(axis=0) + own.max(axis=0)) / 2 / WORLD.size * PLACES  # of the box around it
        if label["colour"] != "white":  # whose words are nearly as white
            assert np.abs(centre - (label["row"] + 0.5, label["column"] + 0.5)).max() < 0.5 + 0.3


def test_a_picture_shows_a_moment_of_an_event():
    """Drawn again from the event, the picture and its words are the same."""
    for index in range(50):
        rng = rng_of("picture", index)
        event = rng.choice(draw_world(rng.randrange(10**6), WORLD).events)
        second = event.start + rng.random() * event.seconds
        pixels, classes = picture(index, WORLD)
        label = told(classes)
        assert np.array_equal(pixels, np.asarray(draw_frame(event, second, WORLD.size)))
        assert all(getattr(event, name) == label[name] for name in ("colour", "shape", "background", "word"))
        assert event.start <= second < event.stop and event.motion in MOTIONS


def test_pictures_show_every_class():
    classes = np.array([picture(index, WORLD)[1] for index in range(600)])
    for place, options in enumerate(LABELS.values()):
        assert set(classes[:, place]) == set(range(len(options)))


# --- texts ---


@pytest.mark.parametrize(
    ("family", "template"), [("qwen2", "plain"), ("qwen2", "qwen2"), ("llama", "llama_3")]
)
def test_the_warm_up_reads_rows_as_training_does(tiny, family, template):
    processor = fresh(tiny, family, template=template).processor
    batch = text_batch([3, 8], AutoTokenizer.from_pretrained(tiny / family), template, WORLD, CORPUS)
    for line, index in enumerate((3, 8)):
        row = processor.encode_turns(parse_sample(text_row(index, WORLD, CORPUS), "here").turns)
        length = len(row["input_ids"])
        assert batch["input_ids"][line, :length].tolist() == row["input_ids"]
        assert batch["labels"][line, :length].tolist() == row["labels"]
        assert (
            batch["attention_mask"][line].sum() == length and (batch["labels"][line, length:] == -100).all()
        )


# --- warm-ups ---


@pytest.mark.parametrize("kind", TOWERS)
def test_the_same_steps_make_the_same_tower(tiny, tmp_path, kind):
    steps, results = [], []
    for name in ("a", "b"):
        folder = shutil.copytree(tiny / kind, tmp_path / name)
        results.append(warm_tower(folder, WORLD, CONFIG, lambda **figures: steps.append(figures)))
    assert len(steps) == 2 * CONFIG.tower_steps and set(steps[0]) == {"loss", "accuracy"}
    one, other, before = (weights(f, AutoModel) for f in (tmp_path / "a", tmp_path / "b", tiny / kind))
    assert not differing(one, other) and results[0] == results[1]
    assert len(differing(one, before)) > len(before) / 2


@pytest.mark.parametrize("family", BACKBONES)
def test_the_same_steps_make_the_same_language_model(tiny, tmp_path, family):
    losses, steps = [], []
    for name in ("a", "b"):
        folder = shutil.copytree(tiny / family, tmp_path / name)
        losses.append(
            warm_language_model(folder, "plain", WORLD, CORPUS, CONFIG, lambda **f: steps.append(f))
        )
    assert len(steps) == 2 * CONFIG.lm_steps and losses[0] == losses[1]
    one, other, before = (
        weights(f, AutoModelForCausalLM) for f in (tmp_path / "a", tmp_path / "b", tiny / family)
    )
    assert not differing(one, other)
    assert differing(one, before) == set(before), "every weight learns"
    assert AutoTokenizer.from_pretrained(tmp_path / "a")("red")["input_ids"]


@pytest.mark.parametrize("folder", ["qwen2", "llama", "siglip", "clip"])
def test_muon_has_the_matrices_of_the_layers_and_adam_the_rest(tiny, folder):
    model = load_target(f"transformers:AutoModel{'ForCausalLM' if folder in ('qwen2', 'llama') else ''}")
    model = model.from_pretrained(tiny / folder)
    name_of = {id(p): name for name, p in model.named_parameters()}
    optimizers = pretrain.WarmUpOptimizer(model, PretrainConfig(), steps=3).optimizers
    groups = [{name_of[id(p)] for g in o.param_groups for p in g["params"]} for o in optimizers]
    layers = {name for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    assert groups[0] == layers
    assert groups[0] | groups[1] == set(name_of.values()) and not groups[0] & groups[1]


# --- two processes ---


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_two_processes_learn_from_the_batch_of_one(tiny, monkeypatch):
    """Each takes every second row, and their averaged gradient is that of the whole batch.

    Exactly so when weighted by learned tokens; the plain average that is used comes within a few per cent.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny / "qwen2")
    model = AutoModelForCausalLM.from_pretrained(tiny / "qwen2")
    rows = range(10**7, 10**7 + 8)

    def learn_from(indices) -> tuple[torch.Tensor, int]:
        model.zero_grad()
        batch = text_batch(indices, tokenizer, "plain", WORLD, CORPUS)
        model(**batch).loss.backward()
        return gradient(model), int((batch["labels"][:, 1:] != -100).sum())

    whole, _ = learn_from(rows)
    (first, m), (second, n) = (learn_from(rows[rank::2]) for rank in (0, 1))  # the second is in model.grad
    torch.testing.assert_close((first * m + second * n) / (m + n), whole, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(pretrain.dist, "all_reduce", lambda flat: flat.add_(first))
    _average_gradients(model, 2)
    torch.testing.assert_close(gradient(model), (first + second) / 2)
    assert (gradient(model) - whole).norm() < 0.05 * whole.norm()


def test_one_process_keeps_its_gradient(tiny, monkeypatch):
    monkeypatch.setattr(pretrain.dist, "all_reduce", None)
    model = torch.nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = gradient(model).clone()
    _average_gradients(model, 1)
    assert torch.equal(gradient(model), before)

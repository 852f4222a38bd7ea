"""Shared by tests of the evaluation: a tiny checkpoint, and one that has learnt some answers by heart."""

import pytest
import torch
from miniatures import videomme
from tiny_world import fresh

from quicksviewer.conversation import Turn
from quicksviewer.data.collator import DataCollatorForSupervisedDataset
from quicksviewer.eval.eval_world import samples
from quicksviewer.eval.task import write_prompts
from quicksviewer.eval.tasks import task_named
from quicksviewer.model.builder import load_pretrained_model

LETTERS = {"001-1": "C", "001-2": "The answer is (A).", "601-1": "A man"}
"""What `learnt` answers to the miniature of Video-MME, whose right answers are C, A and B."""
WRONG = "nothing"
"""What it answers to every third question of the world; to the others it answers right."""


def save(loaded, folder):
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tiny, tmp_path_factory):
    """A checkpoint of a fresh model."""
    return save(fresh(tiny), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def loaded(folder):
    return load_pretrained_model(str(folder))


@pytest.fixture(scope="session")
def learnt(tiny, tmp_path_factory):
    """A checkpoint of a model that knows the answers of LETTERS, and those of the first six questions of
    the world but every third."""
    torch.manual_seed(0)
    loaded, root = fresh(tiny), tmp_path_factory.mktemp("by_heart")
    videomme(root, tiny)
    task = task_named("videomme")
    texts = [
        (item, write_prompts(task.prompt, item, [])[0], LETTERS[item.uid])
        for item in task.samples(root, None)
    ]
    for place, item in enumerate(list(samples(tiny / "data"))[:6]):
        texts.append((item, item.questions[0], item.answer if place % 3 else WRONG))
    return save(learn(loaded, texts), tmp_path_factory.mktemp("learnt"))


def learn(loaded, texts):
    """Steps on (item, prompt, answer) until the model says nothing else."""
    rows, processor = [], loaded.processor
    for item, prompt, answer in texts:
        turns = [Turn("user", f"<video>\n{prompt}"), Turn("assistant", answer)]
        rows.append(processor.encode_turns(turns, [processor.load_video(item.video)]))
    batch = DataCollatorForSupervisedDataset(processor.pad_id)(rows)
    model = loaded.model.train()
    model.vision_tower.requires_grad_(False)
    batch["pixel_values"] = model.vision_tower(batch["pixel_values"])  # frozen: seen once
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=4e-3, weight_decay=0.0
    )
    for _ in range(200):
        loss = model(**batch, noise_weight=0.0).loss
        if loss < 0.01:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05, f"it has not learnt: {loss}"
    model.eval()
    return loaded

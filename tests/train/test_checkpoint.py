"""Which checkpoints are kept, passed over and refused; and what reaches the model in its own precision."""

from types import SimpleNamespace

import pytest
import torch

from quicksviewer.train.checkpoint import (
    DataState,
    ResumeError,
    abandon_later,
    check_optimizer,
    keep_newest,
    newest_checkpoint,
    numbered_checkpoints,
)
from quicksviewer.train.llava_trainer import LLaVATrainer
from quicksviewer.utils.manifest import write_manifest


@pytest.fixture
def run_dir(tmp_path):
    for step in (50, 100, 200, 1000):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(str(step))
        write_manifest(folder)
    return tmp_path


def steps(run_dir) -> list[int]:
    return [int(folder.name.split("-")[1]) for folder in numbered_checkpoints(run_dir)]


def test_the_oldest_go_first(run_dir):
    keep_newest(run_dir, 2)
    assert steps(run_dir) == [200, 1000]
    keep_newest(run_dir, None)
    assert steps(run_dir) == [200, 1000]


@pytest.mark.parametrize(("start", "left"), [(0, []), (100, [50, 100]), (1000, [50, 100, 200, 1000])])
def test_checkpoints_of_another_history_are_set_aside(run_dir, start, left):
    """Else the next one of this run would be the oldest, and `last` would go to the other history."""
    abandon_later(run_dir, start)
    assert steps(run_dir) == left
    lost = {50, 100, 200, 1000} - set(left)
    assert {p.name for p in run_dir.glob("*.abandoned")} == {f"checkpoint-{n}.abandoned" for n in lost}


def test_a_replacement_that_was_cut_short_is_undone(run_dir):
    (run_dir / "checkpoint-1000").rename(run_dir / "checkpoint-1000.replaced")
    assert newest_checkpoint(str(run_dir)) == str(run_dir / "checkpoint-1000")


@pytest.mark.parametrize(
    ("files", "deepspeed"), [([], False), (["optimizer.pt"], False), (["optimizer.pt"], True)]
)
def test_an_optimizer_that_would_start_afresh_is_refused(tmp_path, files, deepspeed):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ResumeError, match="Resume with the engine that wrote it"):
        check_optimizer(tmp_path, deepspeed)


CHANGES = {"fingerprint": "other", "rows": 9, "seed": 1, "order": "sequential", "step_rows": 8}


@pytest.mark.parametrize("name", CHANGES)
def test_another_order_of_samples_is_refused(tmp_path, name):
    run = DataState(fingerprint="data", rows=8, seed=0, order="random", step_rows=4)
    run.at(3, 12).save(tmp_path)
    saved = DataState.load(tmp_path)
    assert saved.expected_by(run) == saved == run.at(3, 12)
    with pytest.raises(ResumeError, match=f"{name} was"):
        saved.expected_by(DataState(**{**vars(run), name: CHANGES[name]}))


def test_times_keep_their_precision_under_bfloat16():
    """transformers rounds every input to DeepSpeed's dtype: 257 s would be 256 s."""
    bf16 = SimpleNamespace(hf_ds_config=SimpleNamespace(is_bf16=lambda: True, dtype=lambda: torch.bfloat16))
    trainer = object.__new__(LLaVATrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    trainer.is_deepspeed_enabled, trainer.accelerator = True, SimpleNamespace(state=bf16)
    given = {"frame_times": torch.tensor([257.0, 1001.0]), "medium_frames": [2]}
    out = trainer._prepare_input(given)
    assert out["frame_times"].dtype == torch.float32 and out["frame_times"].tolist() == [257.0, 1001.0]
    assert out["medium_frames"] == [2]

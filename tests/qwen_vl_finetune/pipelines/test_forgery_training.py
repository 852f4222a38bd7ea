"""The embedded size of all three tasks, from the pictures to the figures; minutes on two cores."""

import json
import time

import pytest

from quicksviewer.qwen_vl_finetune.pipelines import command

MINUTES = 10


def figures(folder) -> dict:
    return json.loads((folder / "inference_results.json").read_text())["figures"]


@pytest.mark.slow
def test_all_three_tasks_find_held_out_forgeries(tmp_path):
    seconds = {}
    for task in ("modular", "lm", "hybrid"):
        began = time.monotonic()
        assert command.main(task, ["--output", str(tmp_path)]) == 0
        seconds[task] = time.monotonic() - began
    heads = figures(tmp_path / "task1_modular_lora/subtask_vit_head_eval")
    answers = figures(tmp_path / "task2_lm_lora/evaluation")
    both = figures(tmp_path / "task3_hybrid_lora/evaluation")
    print(json.dumps({"seconds": seconds, "task 1": heads, "task 2": answers, "task 3": both}, indent=1))
    assert heads["auroc"] >= 0.95 and heads["mean_iou"] >= 0.5
    assert answers["auroc"] > 0.8
    assert both["auroc"] >= max(heads["auroc"], answers["auroc"]) - 0.01
    assert both["mean_iou"] >= heads["mean_iou"] - 0.02
    assert seconds["modular"] < 60 * MINUTES

"""What the documents say of learning, from nothing and with the shipped settings: minutes each."""

import json
from pathlib import Path

import pytest

from quicksviewer.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_formulas_are_read_with_a_third_of_the_errors(tmp_path):
    """docs/qwen_vl.md; held-out formulas, greedy answers."""
    config = ROOT / "configs/qwen_vl/ocr_tiny.yaml"
    assert main(["finetune", "ocr", "--config", str(config), "--output-dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["before"]["samples"] == result["after"]["samples"] == 400
    assert result["after"]["cer"] <= result["before"]["cer"] / 3


@pytest.mark.slow
def test_a_small_blip_answers_easy_vqa(tmp_path, monkeypatch):
    """docs/pipeline.md; the package's own test split. Blind, by the words of a question, is 0.67."""
    pytest.importorskip("easy_vqa")
    monkeypatch.chdir(ROOT)
    recipe, out = "blip_vqa", tmp_path / "blip"
    from quicksviewer.data import easy_vqa

    assert easy_vqa.main([]) == 0
    assert main(["train", "--recipe", recipe, "--output_dir", str(out)]) == 0
    assert main(["vqa", "--model-path", str(out), "--out", str(tmp_path / "vqa.json")]) == 0
    result = json.loads((tmp_path / "vqa.json").read_text())
    scores = [record["score"] for record in result["records"]]
    assert len(scores) == 9673 and sum(scores) / len(scores) >= 0.80
    for kind in ("shape", "colour", "yes_no"):
        own = [record["score"] for record in result["records"] if record["kind"] == kind]
        assert sum(own) / len(own) >= 0.80, kind

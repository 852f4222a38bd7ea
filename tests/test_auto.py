"""transformers' Auto classes know our types after `import quicksviewer`, in any order of imports."""

import subprocess
import sys

import pytest
import torch
from tiny_world import BACKBONES, fresh, video_row, videos

USE = """
config = transformers.AutoConfig.from_pretrained({folder!r})
model = transformers.AutoModelForImageTextToText.from_pretrained({folder!r})
processor = transformers.AutoProcessor.from_pretrained({folder!r})
print(type(config).__name__, type(model).__name__, type(processor).__name__)
"""
ORDERS = {
    "ours first": "import quicksviewer, transformers",
    "transformers first": "import transformers; transformers.AutoModelForCausalLM; import quicksviewer",
}


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_load_our_checkpoints(tiny, tmp_path, order):
    loaded = fresh(tiny)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    code = ORDERS[order] + USE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["LlavaQwenConfig", "LlavaQwenForCausalLM", "QuicksviewerProcessor"], (
        done.stderr
    )


def test_the_command_line_starts_without_heavy_imports():
    code = "import runpy, sys; sys.argv = ['-m']; import quicksviewer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_auto_loaded_model_answers_as_the_saved_one(tiny, tmp_path, backbone):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loaded = fresh(tiny, backbone)
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    row = video_row(loaded, videos(tiny)[0])
    batch = processor.batch([row])
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, loaded.model.eval()(**batch).logits)

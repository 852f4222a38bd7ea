"""The proof of an export: a clip, a question, and what the model makes of them before and after.

Before: the checkpoint as the project loads it, or as DeepSpeed itself joins its shards. After: the written
folder, in a fresh process that knows nothing but transformers and our types. Both compute in float32 on the
CPU, the checkpoint with its weights rounded to what was written, so that equal weights give equal logits.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from quicksviewer.model.builder import ADAPTER_WEIGHTS, OTHER_FILE, load_pretrained_model
from quicksviewer.model.consolidate import write_file
from quicksviewer.model.export_weights import ADAPTER, WRAPPED, is_adapter
from quicksviewer.model.raw_weights import SINGLE, copy_others, read_file
from quicksviewer.model.zero_join import joined_by_deepspeed
from quicksviewer.model.zero_shards import LATEST
from quicksviewer.utils.manifest import check

FOLDER, CLIP, EXPECTED, RECORD = "probe", "clip.mp4", "expected.safetensors", "probe.json"
QUESTION = "What happens in this video?"
SECONDS, RATE, SIDE = 4, 8, 96
NEW_TOKENS = 12
TOLERANCE = 1e-5
"""Largest difference of two logits, as a share of the largest logit."""
CHILD = Path(__file__).with_name("export_child.py")
CHILD_SECONDS = 3600


@dataclass(frozen=True)
class Answer:
    """Logits of the prompt's tokens (T, W) float32, ids of prompt and greedy answer, its text, the frame
    plan."""

    logits: Tensor
    prompt: Tensor
    new: Tensor
    text: str
    plan: str

    def save(self, path: Path) -> None:
        tensors = {"logits": self.logits, "prompt": self.prompt, "new": self.new}
        save_file(tensors, path, metadata={"text": self.text, "plan": self.plan})

    @classmethod
    def load(cls, path: Path) -> "Answer":
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("logits", "prompt", "new")}
            return cls(**tensors, **file.metadata())

    def last(self) -> "Answer":
        """The same with the logits of the last token alone."""
        return replace(self, logits=self.logits[-1:].clone())


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it was. `plan`: which frames were looked at."""

    question: str
    text: str
    plan: dict
    tokens: int
    largest_difference: float
    largest_logit: float
    tolerance: float = TOLERANCE


def write_clip(path: Path) -> None:
    """A few seconds of two squares on a grey ground; one moves, the ground changes twice."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index in range(SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(_picture(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _picture(index: int) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), 60 + 60 * (3 * index // (SECONDS * RATE)), np.uint8)
    step = index * (SIDE - 24) // (SECONDS * RATE)
    picture[12:36, step : step + 24] = (220, 40, 40)
    picture[60:84, 36:60] = (40, 60, 220)
    return picture


def aligned(model):
    """The model with its weights moved to memory of their own, in place.

    Loaded, they lie in the mapped file as they come, and of numbers that are not aligned the CPU adds up
    products in another order: equal weights would give logits that differ in the last bits.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


@torch.no_grad()
def ask(model, processor, clip: Path) -> Answer:
    """What a model in eval mode answers to the question about the clip."""
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": f"\n{QUESTION}"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True
    )
    logits = model(**batch).logits[0].float()
    out = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    prompt = batch["input_ids"][0]
    new = out[0, len(prompt) :].clone()
    text = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    return Answer(logits, prompt.clone(), new, text, processor.load_video(clip).plan.to_json())


def ask_checkpoint(
    checkpoint: Path, clip: Path, dtype: torch.dtype | None, base: Path | None, from_shards: bool
) -> Answer:
    """The answer of a checkpoint whose weights are rounded to `dtype`; None: they stay."""
    with tempfile.TemporaryDirectory(dir=clip.parent) as scratch:
        folder = _joined(checkpoint, Path(scratch)) if from_shards else checkpoint
        loaded = load_pretrained_model(str(folder), str(base) if base else None, dtype=torch.float32)
    for weight in loaded.model.parameters() if dtype else ():
        weight.data = weight.data.to(dtype).float()
    return ask(aligned(loaded.model), loaded.processor, clip)


def _joined(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint with weight files of its shards' weights, joined by DeepSpeed: another code than
    ours."""
    joined = joined_by_deepspeed(checkpoint)
    copy_others(checkpoint, folder)
    (folder / LATEST).unlink()
    if not is_adapter(checkpoint):
        write_file(folder / SINGLE, joined)
        return folder
    plain = {n.removeprefix(WRAPPED).replace(".base_layer.", "."): t for n, t in joined.items()}
    others = {name: tensor for name, tensor in plain.items() if not ADAPTER.match(name)}
    others.pop("lm_head.weight", None)
    if (checkpoint / OTHER_FILE).is_file():
        others = read_file(checkpoint / OTHER_FILE).tensors | others
    write_file(folder / OTHER_FILE, others)
    adapter = {n.replace(".default.", "."): t for n, t in joined.items() if ADAPTER.match(n)}
    write_file(folder / ADAPTER_WEIGHTS, adapter)
    return folder


def ask_folder(folder: Path, clip: Path) -> Answer:
    """The answer of a folder that a fresh process loads with plain transformers. ValueError with what it said
    if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "answer.safetensors"
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-P", str(CHILD), str(folder), str(clip), str(out)]
        try:
            child = subprocess.run(
                words, capture_output=True, text=True, env=os.environ | path, timeout=CHILD_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{folder} gave no answer within {CHILD_SECONDS} s") from None
        if child.returncode:
            raise ValueError(f"{folder} does not load in a fresh process:\n{child.stderr[-2000:]}")
        return Answer.load(out)


def prove(folder: Path, wanted: Answer) -> Proof:
    """Compare a written folder with the answer of its checkpoint, and leave the proof in it. ValueError,
    with the numbers, if they differ."""
    proof = _compared(wanted, ask_folder(folder, folder / FOLDER / CLIP))
    wanted.last().save(folder / FOLDER / EXPECTED)
    (folder / FOLDER / RECORD).write_text(json.dumps(asdict(proof), indent=1) + "\n")
    return proof


def verify(folder: Path) -> Proof:
    """Ask an exported folder again, now and here, and compare with what it kept. ValueError if it differs."""
    if not (folder / FOLDER / EXPECTED).is_file():
        raise ValueError(f"{folder} was not written by quicksviewer export: it has no {FOLDER}/{EXPECTED}")
    check(folder)
    return _compared(
        Answer.load(folder / FOLDER / EXPECTED), ask_folder(folder, folder / FOLDER / CLIP).last()
    )


def _compared(wanted: Answer, found: Answer) -> Proof:
    if not torch.equal(wanted.prompt, found.prompt) or wanted.plan != found.plan:
        raise ValueError("the exported processor looks at other frames or writes another prompt")
    largest = wanted.logits.abs().max().item()
    apart = (wanted.logits - found.logits).abs().max().item()
    if not apart <= TOLERANCE * largest:  # also where one is not a number
        raise ValueError(
            f"the exported model is another one: its logits differ by up to {apart:g}, of {largest:g}; "
            f"allowed are {TOLERANCE * largest:g}"
        )
    if not torch.equal(wanted.new, found.new):
        raise ValueError(f"the exported model answers {found.text!r}, the checkpoint {wanted.text!r}")
    return Proof(QUESTION, wanted.text, json.loads(wanted.plan), len(wanted.prompt), apart, largest)

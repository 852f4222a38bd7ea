"""The model card of an exported folder: README.md with the facts of the run, read from what the run wrote."""

import json
from importlib import metadata
from pathlib import Path

import yaml

from quicksviewer.model.export_probe import FOLDER, NEW_TOKENS, Proof
from quicksviewer.model.export_weights import Weights
from quicksviewer.utils.commit import commit_of
from quicksviewer.utils.manifest import sha256_of

VERSIONS = ("quicksviewer", "torch", "transformers", "peft", "deepspeed", "av")
SETTINGS = (
    *("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "optim", "bf16", "model_max_length", "seed"),
)
"""Arguments of training that a reader asks for; run.json has all."""
RUN, TRAINABLE, STATE = "run.json", "trainable.json", "trainer_state.json"
MOST_STAGES = 10

USE = """\
import quicksviewer  # tells transformers about this model
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
content = [{{"type": "video", "path": "video.mp4"}}, {{"type": "text", "text": "{question}"}}]
batch = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True
)
answer = model.generate(**batch, max_new_tokens=128)[0, batch["input_ids"].shape[1] :]
print(processor.tokenizer.decode(answer, skip_special_tokens=True))
"""


def write_card(folder: Path, checkpoint: Path, weights: Weights, dtype: str, files: list[str], proof: Proof):
    """Write README.md. Facts that a checkpoint does not have are left out; paths are cut to their last
    part."""
    run = _read(checkpoint, RUN)
    head = {"library_name": "transformers", "pipeline_tag": "video-text-to-text", "tags": ["quicksviewer"]}
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {folder.name.removesuffix('.partial')}",
        _made(checkpoint, weights, dtype),
        "## Use\n\n```python\n" + USE.format(name=".", question=proof.question) + "```",
        _run(checkpoint, run),
        _trained(checkpoint),
        _metrics(checkpoint),
        _proof(proof),
        _table("## Files", ("file", "SHA-256"), [(name, f"`{sha256_of(folder / name)}`") for name in files]),
        _table("## Written with", ("what", "version"), _versions()),
    ]
    (folder / "README.md").write_text("\n\n".join(filter(None, sections)) + "\n")


def _made(checkpoint: Path, weights: Weights, dtype: str) -> str:
    where = "the float32 shards of ZeRO-3" if weights.from_shards else "its weight files"
    text = f"A video model of quicksviewer, in {dtype}, exported from `{checkpoint.name}` ({where})."
    if weights.base is not None:
        text += f" A LoRA adapter of {weights.merged} layers was merged into `{weights.base.name}`."
    return text


def _run(checkpoint: Path, run: dict) -> str:
    if not run:
        return ""
    model, data, training = (run.get(section) or {} for section in ("model", "data", "training"))
    rows = [
        ("recipe", Path(str(run.get("recipe"))).stem),
        ("stages", " <- ".join(_stages(run))),
        ("data", Path(str(data.get("data_path"))).name),
        ("SHA-256 of the data", run.get("data_sha256")),
        ("template", model.get("version")),
    ]
    if model.get("lora_enable"):
        names = ("lora_parts", "lora_r", "lora_alpha", "lora_dropout", "bits")
        rows.append(("LoRA", ", ".join(f"{n.removeprefix('lora_')} {model.get(n)}" for n in names)))
    if training.get("deepspeed"):
        rows.append(("DeepSpeed", Path(str(training["deepspeed"])).name))
    steps = training.get("max_steps") or -1
    unused = "num_train_epochs" if steps > 0 else "max_steps"
    rows += [(n, training[n]) for n in SETTINGS if n != unused and training.get(n) is not None]
    return _table("## Training", ("setting", "value"), [row for row in rows if row[1] is not None])


def _stages(run: dict) -> list[str]:
    """This stage, what it started from, and so on, as far as the folders are still there."""
    found = []
    while len(found) < MOST_STAGES:
        found.append(str(run.get("stage")))
        before = Path(str((run.get("model") or {}).get("model_name_or_path")))
        if not (run := _read(before, RUN)):
            return [*found, f"`{before.name}`"]
    return found


def _trained(checkpoint: Path) -> str:
    rows = _read(checkpoint, TRAINABLE) or []
    if not rows:
        return ""
    cells = [(r["part"], f"{r['parameters']:,}", f"{r['trainable']:,}") for r in rows if r["parameters"]]
    return _table("## Trained parts", ("part", "parameters", "trained"), cells)


def _metrics(checkpoint: Path) -> str:
    state = _read(checkpoint, STATE)
    logs = [entry for entry in (state or {}).get("log_history", []) if "loss" in entry]
    if not logs:
        return ""
    first, last = logs[0], logs[-1]
    names = [name for name in last if name.startswith("loss") or name == "grad_norm"]
    rows = [(name, _number(first.get(name)), _number(last[name])) for name in sorted(names)]
    head = (
        f"## Metrics of training\n\nThe first and the last log, of step {first['step']} and {last['step']}."
    )
    return _table(head, ("metric", "first", "last"), rows)


def _number(value) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""


def _proof(proof: Proof) -> str:
    return (
        f"## Proof\n\nLoaded again in a fresh process, in float32 on a CPU, and asked about "
        f"`{FOLDER}/clip.mp4`: the logits of {proof.tokens} tokens differ from the checkpoint's by at most "
        f"{proof.largest_difference:g} (the largest is {proof.largest_logit:.3f}), the greedy answer of up "
        f"to {NEW_TOKENS} tokens is the same. `quicksviewer export --verify .` asks again."
    )


def _versions() -> list[tuple[str, str]]:
    rows = []
    for name in VERSIONS:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    commit = commit_of(Path(__file__).parents[1])
    return [*rows, ("commit", commit)] if commit else rows


def _read(checkpoint: Path, name: str):
    """A JSON file of a checkpoint, or of the run's folder that it lies in; nothing where there is none."""
    of_run = [checkpoint.resolve().parent] if checkpoint.name.startswith("checkpoint-") else []
    for folder in (checkpoint, *of_run):
        if (folder / name).is_file():
            return json.loads((folder / name).read_text())
    return {}


def _table(head: str, columns: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return head + "\n\n" + "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

"""Evaluate a checkpoint: load, ask, score, write one JSON that says how it came about.

    python -m quicksviewer eval world --model-path output/quickstart/stage3 --blind

Greedy decoding, a fixed seed, and an unanswered question counts as wrong. `--blind` asks everything again
with the frames replaced by noise: what is then still right was guessed from the question.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from quicksviewer.conversation import Turn
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval import eval_world
from quicksviewer.eval.metrics import by_kind
from quicksviewer.utils.data_util import MediaError
from quicksviewer.utils.registry import lookup

TASKS = {"world": eval_world}
"""Name -> module with samples(data), score(item, answer), DEFAULT_DATA and MAX_NEW_TOKENS."""
GREEDY = dict(do_sample=False, num_beams=1, repetition_penalty=1.0, temperature=None, top_p=None, top_k=None)
"""Every one is said, so that no checkpoint's defaults creep in."""


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 nothing could be evaluated, 2 wrong usage."""
    args = _parser().parse_args(argv)
    try:
        task = lookup(TASKS, args.task, "task")
        from quicksviewer.model.builder import load_pretrained_model

        items = list(task.samples(args.data or task.DEFAULT_DATA))[: args.limit]
        loaded = load_pretrained_model(args.model_path, args.model_base, args.device)
        out = Path(args.output or Path(args.model_path) / f"eval_{args.task}.json")
        out.parent.mkdir(parents=True, exist_ok=True)
    except (SampleError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(args.seed)
    started = time.time()
    records = evaluate(loaded, items, task, args)
    result = {
        "task": args.task,
        "model": args.model_path,
        "weights_sha256": weights_hash(args.model_path),
        "media": loaded.processor.media,
        "template": loaded.processor.template,
        "decoding": {"greedy": True, "max_new_tokens": task.MAX_NEW_TOKENS},
        "seed": args.seed,
        "seconds": round(time.time() - started, 1),
        "by_kind": by_kind(records),
        "records": records,
    }
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report(result, out)
    return 0 if any(record["error"] is None for record in records) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer eval", description=__doc__.splitlines()[0])
    parser.add_argument("task", help=", ".join(TASKS))
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-base", help="language model of a LoRA checkpoint, if it was moved")
    parser.add_argument("--data", help="folder of the task's files")
    parser.add_argument("--output", help="result file (default: eval_TASK.json in the checkpoint)")
    parser.add_argument("--blind", action="store_true", help="ask again with the frames replaced by noise")
    parser.add_argument("--limit", type=_count, help="only the first so many questions")
    parser.add_argument("--batch-size", type=_count, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


def evaluate(loaded, items, task, args) -> list[dict]:
    """A record of every item: answer, score, chance, error; with --blind also blind_answer and
    blind_score."""
    media = MediaCache(loaded.processor)
    items = sorted(items, key=lambda item: item.video)  # questions about one video follow each other
    records = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for start in bar.track(range(0, len(items), args.batch_size), description=f"{args.task}"):
            records += answer_batch(loaded, items[start : start + args.batch_size], task, media, args)
    return records


class MediaCache:
    """The last video, decoded: the questions about it come one after another."""

    def __init__(self, processor):
        self.processor, self.path, self.medium = processor, None, None

    def load(self, path: str):
        if path != self.path:
            self.medium, self.path = self.processor.load_video(path), path
        return self.medium


def answer_batch(loaded, items, task, media, args) -> list[dict]:
    records, rows, blind_rows, asked = [], [], [], []
    for item in items:
        records.append(_unanswered(item, args.blind))
        turns = [Turn("user", f"<video>\n{item.prompt}")]
        try:
            medium = media.load(item.video)
            rows.append(loaded.processor.encode_turns(turns, [medium], generation=True))
        except (MediaError, ValueError) as error:
            records[-1]["error"] = f"{item.where}: {error}"
            continue
        blind_rows.append({**rows[-1], "pixel_values": _noise(rows[-1]["pixel_values"], item.uid)})
        asked.append((records[-1], item))
    for prefix, inputs in (("", rows), ("blind_", blind_rows if args.blind else [])):
        for (record, item), answer in zip(
            asked if inputs else [], generate(loaded, inputs, task), strict=False
        ):
            record[f"{prefix}answer"], record[f"{prefix}score"] = answer, task.score(item, answer)
    return records


def _unanswered(item, blind: bool) -> dict:
    """The record of an item that has no answer, which is wrong."""
    record = {"uid": item.uid, "kind": item.kind, "prompt": item.prompt, "expected": item.answer}
    record |= {"chance": item.chance, "answer": "", "score": 0.0, "error": None}
    return record | ({"blind_answer": "", "blind_score": 0.0} if blind else {})


def _noise(pixels, uid: str):
    """Uniform noise in place of the frames, drawn from the item's name."""
    seed = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:7], "big")
    return torch.randint(
        0, 256, pixels.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def generate(loaded, rows: list[dict], task) -> list[str]:
    """Greedy answers to rows."""
    if not rows:
        return []
    batch = loaded.processor.batch(rows).to(loaded.model.device)
    out = loaded.model.generate(**batch, max_new_tokens=task.MAX_NEW_TOKENS, **GREEDY)
    new = out[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.tokenizer.batch_decode(new, skip_special_tokens=True)]


def weights_hash(folder: str) -> str:
    """SHA-256 over the weight files of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def report(result: dict, path: Path) -> None:
    """A table by kind, and as the last line what matters."""
    console = Console(markup=False)
    table = Table(title=f"{result['task']}: {result['model']}")
    columns = ("kind", "items", "accuracy", "95% interval", "chance", "blind")
    for column in columns:
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, row in result["by_kind"].items():
        blind = f"{row['blind']:.2f}" if "blind" in row else "-"
        span = f"{row['low']:.2f} .. {row['high']:.2f}"
        table.add_row(kind, str(row["items"]), f"{row['accuracy']:.2f}", span, f"{row['chance']:.2f}", blind)
    console.print(table)
    if failed := [record for record in result["records"] if record["error"]]:
        console.print(
            f"{len(failed)} items could not be asked and count as wrong, the first: {failed[0]['error']}"
        )
    console.print(f"written to {path}", soft_wrap=True)
    kinds = " ".join(f"{k}={row['accuracy']:.2f}" for k, row in result["by_kind"].items() if k != "overall")
    whole = result["by_kind"]["overall"]
    blind = f" blind={whole['blind']:.3f}" if "blind" in whole else ""
    print(f"accuracy={whole['accuracy']:.3f} chance={whole['chance']:.3f}{blind} | {kinds}")


if __name__ == "__main__":
    sys.exit(main())

"""How well a MiniMindVLM describes pictures of the embedded world that it has not seen.

    python -m quicksviewer describe --model-path output/minimind/sft

The pictures are those of held-out worlds; the question is that of the training rows. Counted is whether the
colour and the shape that the answer names are right. Chance is the share of the most frequent description.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL.Image import Image
from rich.console import Console
from rich.table import Table

from quicksviewer.constants import IMAGE_MARK
from quicksviewer.conversation import Turn
from quicksviewer.eval.metrics import interval, mean
from quicksviewer.synthetic.corpus import ASK_SEEN, SPLITS, rng_of
from quicksviewer.synthetic.video import draw_frame
from quicksviewer.synthetic.world import WorldConfig, draw_world
from quicksviewer.utils.generation import GREEDY
from quicksviewer.utils.registry import load_target

BATCH, MOST_TOKENS = 32, 16
PARTS = ("colour", "shape", "both")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="quicksviewer describe", description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out world")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="JSON file (default: describe.json in the checkpoint)")
    args = parser.parse_args(argv)
    try:
        if args.pictures < 1 or args.first < 0:
            raise ValueError(
                f"--pictures is at least 1 and --first at least 0, got {args.pictures} and {args.first}"
            )
        result = evaluate(args.model_path, held_out(args.pictures, args.first), args.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = args.output or Path(args.model_path) / "describe.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    show(result, out)
    return 0


def held_out(count: int, first: int = 0) -> list[tuple[Image, str, str]]:
    """(picture, colour, shape) of so many held-out worlds, the same every time. Recipes are tuned on others
    (`first`) than are reported."""
    world, found = WorldConfig(), []
    for index in range(first, first + count):
        event = rng_of("describe", index).choice(draw_world(SPLITS["held_out"] + index, world).events)
        found.append((draw_frame(event, event.start, world.size), event.colour, event.shape))
    return found


def evaluate(folder: str, pictures: list[tuple[Image, str, str]], device: str = "cpu") -> dict:
    """Answers to all pictures, and the share of right ones of each part."""
    load_target("quicksviewer.auto:register")()  # for AutoTokenizer, which looks at the model's config
    vlm = load_target("quicksviewer.minimind:MiniMindVLM")
    processor = load_target("quicksviewer.minimind.processor:MiniMindProcessor").from_pretrained(folder)
    model = vlm.from_pretrained(folder, local_files_only=True).eval().to(device)
    turns, answers = [Turn("user", f"{IMAGE_MARK}\n{ASK_SEEN}")], []
    for start in range(0, len(pictures), BATCH):
        some = pictures[start : start + BATCH]
        rows = [
            processor.encode_turns(turns, [processor.load(IMAGE_MARK, picture)], generation=True)
            for picture, *_ in some
        ]
        answers += describe(model, processor, rows)
    records = [
        {"expected": [colour, shape], "answer": answer, **_right(answer, colour, shape)}
        for (_, colour, shape), answer in zip(pictures, answers, strict=True)
    ]
    return {"model": folder, "pictures": len(pictures), **_shares(records), "records": records}


@torch.inference_mode()
def describe(model, processor, rows: list[dict]) -> list[str]:
    """Greedy answers to rows of the processor."""
    batch = {name: values.to(model.device) for name, values in processor.batch(rows).items()}
    written = model.generate(
        **batch,
        max_new_tokens=MOST_TOKENS,
        **GREEDY,
        eos_token_id=processor.stop_ids,
        pad_token_id=processor.pad_id,
    )
    return processor.decode(written[:, batch["input_ids"].shape[1] :])


def _right(answer: str, colour: str, shape: str) -> dict[str, bool]:
    words = answer.split()
    right = {"colour": words[:1] == [colour], "shape": words[1:2] == [shape]}
    return right | {"both": all(right.values())}


def _shares(records: list[dict]) -> dict:
    shares, chances = {}, {}
    expected = [tuple(record["expected"]) for record in records]
    for part, look in zip(PARTS, (lambda e: e[0], lambda e: e[1], lambda e: e), strict=True):
        right = [float(record[part]) for record in records]
        low, high = interval(right)
        shares[part] = {"accuracy": mean(right), "low": low, "high": high}
        chances[part] = Counter(map(look, expected)).most_common(1)[0][1] / len(records)
    return {"accuracy": shares, "chance": chances}


def show(result: dict, out: Path) -> None:
    """A table, and as the last line what matters."""
    table = Table(title=f"{result['pictures']} pictures of held-out worlds")
    for column in ("part", "right", "95% interval", "chance"):
        table.add_column(column)
    for part, row in result["accuracy"].items():
        span = f"{row['low']:.2f} .. {row['high']:.2f}"
        table.add_row(part, f"{row['accuracy']:.3f}", span, f"{result['chance'][part]:.3f}")
    Console(markup=False).print(table)
    print(f"written to {out}")
    print(f"accuracy={result['accuracy']['both']['accuracy']:.3f} chance={result['chance']['both']:.3f}")


if __name__ == "__main__":
    sys.exit(main())

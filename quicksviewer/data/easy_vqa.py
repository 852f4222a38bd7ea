"""The package `easy-vqa` as rows of ours: 5,000 pictures of one shape each, 48,248 questions, 13 answers.

    pip install --no-deps easy-vqa==1.0
    python -m quicksviewer.data.easy_vqa --out output/easy_vqa

Writes pictures, {train,test}.jsonl (questions), captions_{train,test}.jsonl (what the questions tell of a
picture: "a blue circle"), pairs_{train,test}.jsonl (a picture with its caption or another's) and processor/:
a tokenizer of these words with an image processor. The package's own division into train and test is kept.
Only its files are read; its code is not run. Victor Zhou, easy-VQA, MIT licence.
"""

import argparse
import importlib.util
import json
import random
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from quicksviewer.utils.manifest import check, write_manifest

SPLITS = ("train", "test")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""The last one is what a decoder begins with."""
SIZE = 64
"""Sides of the package's pictures."""
YES_NO = ("yes", "no")
COLOUR = re.compile(r"what (color is|is the color of) the (?P<shape>\w+)\?")
SHAPE = re.compile(r"what (is the (?P<colour>\w+) shape|shape .*)\?")


def package_data() -> Path:
    """The data folder of the installed package. ValueError where it is not installed."""
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ValueError("the package easy-vqa is not installed: pip install --no-deps easy-vqa==1.0")
    return Path(spec.origin).parent / "data"


def kind_of(question: str, answer: str) -> str:
    """What a question asks for: yes_no, colour or shape. ValueError for another one."""
    if answer in YES_NO:
        return "yes_no"
    for kind, pattern in (("colour", COLOUR), ("shape", SHAPE)):
        if pattern.fullmatch(question):
            return kind
    raise ValueError(f"a question of no known kind: {question!r} -> {answer!r}")


def read_questions(data: Path, split: str) -> list[dict]:
    """Rows of a split, in the package's order."""
    entries = json.loads((data / split / "questions.json").read_text(encoding="utf-8"))
    return [
        {
            "uid": f"{split}-{number}",
            "image": f"{split}/{image}.png",
            "question": question,
            "answer": answer,
            "kind": kind_of(question, answer),
        }
        for number, (question, answer, image) in enumerate(entries)
    ]


def told_by(row: dict) -> dict[str, str]:
    """What a question and its answer tell of the picture: its colour, its shape or both."""
    told = {row["kind"]: row["answer"]} if row["answer"] not in YES_NO else {}
    if (asked := COLOUR.fullmatch(row["question"])) and asked["shape"] != "shape":
        told["shape"] = asked["shape"]
    if (asked := SHAPE.fullmatch(row["question"])) and asked["colour"]:
        told["colour"] = asked["colour"]
    return told


def captions_of(rows: Iterable[dict]) -> list[dict]:
    """A row with "a COLOUR SHAPE" for each picture whose questions tell both."""
    told: dict[str, dict[str, str]] = {}
    for row in rows:
        told.setdefault(row["image"], {}).update(told_by(row))
    whole = {image: words for image, words in told.items() if len(words) == 2}
    return [{"image": image, "caption": f"a {w['colour']} {w['shape']}"} for image, w in whole.items()]


def pairs_of(captions: list[dict], seed: int) -> list[dict]:
    """Every picture with its caption (label 1) and, where there are others, with one of them (label 0)."""
    rng, texts = random.Random(seed), sorted({row["caption"] for row in captions})
    rows = []
    for row in captions:
        rows.append({"image": row["image"], "text": row["caption"], "label": 1})
        if others := [text for text in texts if text != row["caption"]]:
            rows.append({"image": row["image"], "text": rng.choice(others), "label": 0})
    return rows


def save_processor(folder: Path, texts: Iterable[str]) -> None:
    """A BLIP processor: every word of the texts is a token, pictures keep their size."""
    from transformers import BertTokenizer, BlipImageProcessorPil, BlipProcessor

    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = {word: number for number, word in enumerate([*SPECIALS, *words])}
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]", model_max_length=64)
    pictures = BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_resize=False)
    BlipProcessor(pictures, tokenizer).save_pretrained(folder)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def convert(out: Path) -> dict[str, int]:
    """Write everything into a folder; file -> rows of what was written. A manifest, written last, says that
    it is whole."""
    data, counts, texts = package_data(), {}, []
    for seed, split in enumerate(SPLITS):
        shutil.copytree(data / split / "images", out / split, dirs_exist_ok=True)
        questions = read_questions(data, split)
        captions = captions_of(questions)
        files = {split: questions, f"captions_{split}": captions, f"pairs_{split}": pairs_of(captions, seed)}
        for name, rows in files.items():
            write_rows(out / f"{name}.jsonl", rows)
            counts[f"{name}.jsonl"] = len(rows)
        if split == "train":
            texts = [row[key] for row in questions for key in ("question", "answer")]
            texts += [row["caption"] for row in captions]
    save_processor(out / "processor", texts)
    write_manifest(out, [path for path in out.iterdir() if path.is_file()])
    return counts


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 written or there already, 2 the package is missing or not as expected."""
    parser = argparse.ArgumentParser(prog="quicksviewer.data.easy_vqa", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="output/easy_vqa", help="folder to write")
    out = Path(parser.parse_args(argv).out)
    try:
        check(out)
        print(f"{out} is there already")
        return 0
    except ValueError:
        pass
    try:
        out.mkdir(parents=True, exist_ok=True)
        counts = convert(out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    width = max(map(len, counts))
    print(f"written to {out}:", *(f"  {name:{width}} {n:>6,} rows" for name, n in counts.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

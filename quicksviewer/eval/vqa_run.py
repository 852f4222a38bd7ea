"""Measure a model that answers questions about pictures, on a split of a pipeline.

    python -m quicksviewer vqa --model-path output/blip_vqa --config configs/pipeline/vqa.yaml

Writes one JSON that says how it came about, and beside it a page of pictures with questions, answers and
mistakes. Greedy decoding; a question that cannot be asked counts as wrong. The blind guesses that stand
beside the accuracy are the most frequent answers of train: for a type of question (`chance`), and for its
very words. Where the pipeline has no train they are left empty.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from quicksviewer.data.pipeline.dataset import PipelineDataset
from quicksviewer.data.pipeline.pipeline import DataPipeline
from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.metrics import by_kind, mean
from quicksviewer.eval.report import number
from quicksviewer.eval.run import report, weights_hash
from quicksviewer.eval.vqa import majority, type_of, vqa_accuracy
from quicksviewer.eval.vqa_page import write_page
from quicksviewer.utils.generation import GREEDY
from quicksviewer.utils.registry import load_target

LOADER = "quicksviewer.zoo:load_model"
MAX_NEW_TOKENS = 16


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 nothing could be asked, 2 wrong usage or missing files."""
    args = _parser().parse_args(argv)
    try:
        weights = weights_hash(args.model_path)
        loaded = load_target(LOADER)(args.model_path, task="vqa", device=args.device)
        pipeline = DataPipeline(args.config, processor=loaded["processor"])
        pipeline.setup()
        result = evaluate(loaded["model"], pipeline, args.split, args.limit, args.batch_size)
    except (ValueError, OSError, SampleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = {"model": str(args.model_path), "weights": weights, **result}
    out = Path(args.out or Path(args.model_path) / f"vqa_{args.split}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    page = out.with_suffix(".html")
    write_page(page, result, pipeline.get_dataset(args.split))
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    report(result, out)
    print(
        f"guessing blind by the words of the question: {number(result['blind_by_question'], 3)}; page: {page}"
    )
    return 0 if any(record["error"] is None for record in result["records"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer vqa", description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default="output/blip_vqa", help="checkpoint folder of a BLIP")
    parser.add_argument("--config", default="configs/pipeline/vqa.yaml", help="YAML file of a pipeline")
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--limit", type=int, help="only so many questions, the first ones")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--out", help="JSON to write (default: vqa_SPLIT.json in the checkpoint)")
    return parser


def evaluate(
    model, pipeline: DataPipeline, split: str, limit: int | None = None, batch_size: int = 64
) -> dict:
    """Accuracy of a split by type of question, with what blind guesses reach, and a record of each question.

    Without a train there is nothing to guess from: `blind_by_question` and every `chance` are None.
    ValueError where the pipeline has no such split.
    """
    data, began = pipeline.get_dataset(split), time.time()
    records = [_asked(data, index) for index in range(len(data))[:limit]]
    torch.manual_seed(0)
    for begin in range(0, len(records), batch_size):
        _answer(model, pipeline, data, [r for r in records[begin : begin + batch_size] if not r["error"]])
    seconds = time.time() - began
    has_train = "train" in pipeline.datasets
    by_question = _guess_blindly(records, pipeline) if has_train else None
    rows = by_kind(records)
    if not has_train:
        for row in [*records, *rows.values()]:
            row["chance"] = None
    return {
        "task": "vqa",
        "split": split,
        "seconds": round(seconds, 1),
        "by_kind": rows,
        "blind_by_question": by_question,
        "records": records,
    }


def _asked(data: PipelineDataset, index: int) -> dict:
    """The record of a question that has no answer yet, which is wrong."""
    record = {
        "index": index,
        "kind": "unreadable",
        "question": "",
        "expected": [],
        "answer": "",
        "score": 0.0,
    }
    record |= {"chance": 0.0, "error": None}
    try:
        example = data.example(index)
        record |= {"question": example.text, "expected": list(example.answers)}
        record["kind"] = _kind(data, index, example.answers)
    except SampleError as error:
        record["error"] = str(error)
    return record


def _kind(data: PipelineDataset, index: int, answers) -> str:
    """What the row says under `kind`, else its type by the answers."""
    return str(data.record(index).get("kind") or type_of(answers))


def _answer(model, pipeline: DataPipeline, data: PipelineDataset, records: list[dict]) -> None:
    """Greedy answers of one batch, written into its records."""
    rows, asked = [], []
    for record in records:
        try:
            rows.append(data.load(record["index"]))
            asked.append(record)
        except SampleError as error:
            record["error"] = str(error)
    if not rows:
        return
    batch = pipeline.collator(rows)
    inputs = {key: batch[key].to(model.device) for key in ("pixel_values", "input_ids", "attention_mask")}
    with torch.inference_mode():
        ids = model.eval().generate(**inputs, **GREEDY, max_new_tokens=MAX_NEW_TOKENS)
    answers = pipeline.tokenizer.batch_decode(ids, skip_special_tokens=True)
    for record, answer in zip(asked, answers, strict=True):
        record["answer"] = answer.strip()
        record["score"] = vqa_accuracy(record["answer"], record["expected"])


def _guess_blindly(records: list[dict], pipeline: DataPipeline) -> float:
    """Score the guess by type into the records; the mean score of the guess by the question's words, which
    falls back on its type."""
    train = pipeline.get_dataset("train")
    seen = [_asked(train, index) for index in range(len(train))]
    told = [(record, answer) for record in seen for answer in record["expected"]]
    of_kind = majority((record["kind"], answer) for record, answer in told)
    of_words = majority((record["question"], answer) for record, answer in told)
    scores = []
    for record in records:
        guess = of_kind.get(record["kind"], "")
        if record["expected"]:
            record["chance"] = vqa_accuracy(guess, record["expected"])
            scores.append(vqa_accuracy(of_words.get(record["question"], guess), record["expected"]))
        else:
            scores.append(0.0)
    return mean(scores)


if __name__ == "__main__":
    sys.exit(main())

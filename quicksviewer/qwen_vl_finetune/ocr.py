"""Formula reading from end to end: measure, train adapters, measure again, write a table and a page.

    quicksviewer finetune ocr [--config FILE] [--model-name NAME] [--dataset-name NAME] [--max-steps N]

Without a config the embedded size runs: a tiny model, warmed up on plain text, and drawn formulas. Written
are OUTPUT_DIR/results.json, OUTPUT_DIR/page.html and the adapters.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from quicksviewer.data.preprocess import SampleError
from quicksviewer.qwen_vl_finetune.data_processing import convert_dataset_to_conversations, load_latex_dataset
from quicksviewer.qwen_vl_finetune.evaluation import compare, evaluate, write_result
from quicksviewer.qwen_vl_finetune.model_setup import load_model_and_tokenizer, save_model, setup_peft_model
from quicksviewer.qwen_vl_finetune.page import write_page
from quicksviewer.qwen_vl_finetune.rows import SYNTHETIC
from quicksviewer.qwen_vl_finetune.settings import OcrSettings, read_settings, using
from quicksviewer.qwen_vl_finetune.tiny_base import make_base
from quicksviewer.qwen_vl_finetune.training import setup_trainer, train_model, with_lines
from quicksviewer.utils.config import to_plain

EMBEDDED = Path(__file__).resolve().parents[2] / "configs" / "qwen_vl" / "ocr_tiny.yaml"
OVERRIDES = ("model_name", "dataset_name", "max_steps", "output_dir")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage, settings or missing files."""
    args = _parser().parse_args(argv)
    try:
        settings = settings_of(args)
        with using(settings):
            run(settings)
    except (ValueError, OSError, ModuleNotFoundError, SampleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer finetune ocr", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(EMBEDDED), help="YAML or JSON (default: %(default)s)")
    parser.add_argument("--model-name", help="folder or name on the hub, in place of the config's")
    parser.add_argument("--dataset-name", help="folder, file, name on the hub, or synthetic")
    parser.add_argument("--max-steps", type=int, help="steps of training")
    parser.add_argument("--output-dir", help="where results and adapters go")
    return parser


def settings_of(args: argparse.Namespace) -> OcrSettings:
    """The config's settings with what the flags say. With another output_dir the adapters go below it."""
    settings = read_settings(args.config)
    given = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None}
    if "output_dir" in given:
        given["adapter_dir"] = str(Path(given["output_dir"]) / "lora_model")
        given["merged_dir"] = str(Path(given["output_dir"]) / "merged")
    return replace(settings, **given)


def run(settings: OcrSettings) -> dict:
    """Everything in its order; (measures before and after) as `write_result` writes them."""
    out = Path(settings.output_dir)
    held_out = load_latex_dataset(settings.dataset_name, "test", settings.eval_samples)
    rows = load_latex_dataset(settings.dataset_name, "train", settings.max_samples)
    if settings.model_name == SYNTHETIC:
        print(f"base: a tiny model that reads plain text, in {out / 'base'}")
        settings = replace(settings, model_name=str(make_base(out / "base", settings.tiny)))
    model, processor = load_model_and_tokenizer(settings.model_name)
    model = setup_peft_model(model)
    before = evaluate(model, processor, held_out, settings, _tell("before"))
    trainer = setup_trainer(model, processor, convert_dataset_to_conversations(rows))
    stats = train_model(with_lines(trainer))
    folder = save_model(model, processor)
    after = evaluate(model, processor, held_out, settings, _tell("after"))
    about = {"settings": to_plain(settings), "train_seconds": stats.metrics["train_runtime"]}
    about |= {"train_rows": len(rows), "adapters": str(folder)}
    write_result(out / "results.json", before, after, about)
    title = f"Formulas read by {settings.model_name}, {settings.max_steps} steps on {settings.dataset_name}"
    write_page(out / "page.html", title, held_out, after, before)
    print(table(before, after))
    print(f"adapters: {folder}\nresults: {out / 'results.json'}, {out / 'page.html'}")
    return {"before": before, "after": after, "about": about}


def table(before: dict, after: dict) -> str:
    """The measures of two evaluations under each other."""
    lines = [f"{'measure':12} {'before':>8} {'after':>8}"]
    lines += [f"{name:12} {old:8.3f} {new:8.3f}" for name, old, new in compare(before, after)]
    return "\n".join([*lines, f"on {after['samples']} held-out formulas, greedy answers"])


def _tell(when: str):
    def tell(done: int, total: int) -> None:
        print(f"measured {when} training: {done} of {total} formulas", flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())

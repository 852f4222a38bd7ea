"""The command line: `quicksviewer WORD ...` and `python -m quicksviewer WORD ...` are the same.

A word is a module, imported when it is called; its `main(argv)` returns the exit code: 0 done, 1 failed,
2 wrong usage.
"""

import sys
from importlib import import_module

from quicksviewer import __version__
from quicksviewer.utils.registry import did_you_mean

COMMANDS = {
    "train": ("quicksviewer.train.train", "train one stage of a recipe"),
    "chat": ("quicksviewer.serve.cli", "ask a model about pictures and videos"),
    "demo": ("quicksviewer.serve.page_server", "a page on this machine: drop a video, see it cut, ask"),
    "eval": ("quicksviewer.eval.run", "measure a model on a benchmark"),
    "vqa": ("quicksviewer.eval.vqa_run", "measure answers to questions about pictures"),
    "describe": ("quicksviewer.eval.describe", "measure what a MiniMindVLM says of pictures"),
    "cubes": ("quicksviewer.cubes.command", "show how a video is cut, by any number of methods"),
    "zoo": ("quicksviewer.zoo.command", "load any vision-language model and look at it"),
    "finetune": ("quicksviewer.qwen_vl_finetune.command", "fine-tune Qwen2.5-VL: ocr, modular, lm, hybrid"),
    "bench": ("quicksviewer.bench", "run a study: bench cubing"),
    "data": ("quicksviewer.survey.command", "make, index, check and measure data"),
    "plan": ("quicksviewer.survey.plan", "what a run will take: steps, memory, time, cost"),
    "delta": ("quicksviewer.model.delta_command", "checkpoints as differences: make, apply, verify"),
    "export": ("quicksviewer.model.export", "write a folder that plain transformers loads, proven equal"),
    "import-published": ("quicksviewer.model.import_published", "make a published checkpoint one of ours"),
    "preprocess": ("quicksviewer.preprocess.convert", "convert public data sets, write TSV stores"),
    "doctor": ("quicksviewer.utils.doctor", "show what this machine has and what is missing"),
}
"""Word -> module with a `main`, and what it does."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    rows = (f"  {word:{width}}  {text}" for word, (_, text) in COMMANDS.items())
    head = "usage: quicksviewer WORD [OPTION...]   or   quicksviewer --version"
    return "\n".join([head, "", *rows, "", "quicksviewer WORD --help shows the options of a word."])


def main(argv: list[str] | None = None) -> int:
    """Run one word and give its exit code, also where its argument parser would end the process."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    word, *rest = words
    if word == "--version":
        print(f"quicksviewer {__version__}")
        return 0
    if word not in COMMANDS:
        hint = did_you_mean(word, COMMANDS)
        print(f"error: unknown word {word!r}.{hint} Known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return import_module(COMMANDS[word][0]).main(rest) or 0
    except SystemExit as stop:
        return _exit_code(stop)


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

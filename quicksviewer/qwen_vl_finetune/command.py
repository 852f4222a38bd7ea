"""`quicksviewer finetune TASK ...`: fine-tune Qwen2.5-VL, measure it before and after.

    quicksviewer finetune ocr                           read formulas, the embedded size
    quicksviewer finetune ocr --config FILE.yaml        any model, data and settings

A task is a module whose `main(argv)` returns the exit code: 0 done, 1 failed, 2 wrong usage.
"""

import sys

from quicksviewer.utils.registry import did_you_mean, load_target

TASKS = {
    "ocr": ("quicksviewer.qwen_vl_finetune.ocr:main", "read the LaTeX of formulas"),
    "modular": (
        "quicksviewer.qwen_vl_finetune.pipelines.command:modular",
        "find forgeries: heads on the tower",
    ),
    "lm": ("quicksviewer.qwen_vl_finetune.pipelines.command:lm", "find forgeries: the model's own answer"),
    "hybrid": ("quicksviewer.qwen_vl_finetune.pipelines.command:hybrid", "find forgeries: heads and answer"),
}
"""Task -> its "module:main", and what the model learns."""


def usage() -> str:
    width = max(map(len, TASKS))
    rows = (f"  {task:{width}}  {text}" for task, (_, text) in TASKS.items())
    head = "usage: quicksviewer finetune TASK [OPTION...]"
    return "\n".join([head, "", *rows, "", "quicksviewer finetune TASK --help shows the options of a task."])


def main(argv: list[str] | None = None) -> int:
    """Run one task."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    task, *rest = words
    if task not in TASKS:
        hint = did_you_mean(task, TASKS)
        print(f"error: unknown task {task!r}.{hint} Known: {', '.join(TASKS)}", file=sys.stderr)
        return 2
    return load_target(TASKS[task][0])(rest) or 0


if __name__ == "__main__":
    sys.exit(main())

"""Load any vision-language model and look at it.

quicksviewer zoo list                                        families, tasks, classes
quicksviewer zoo info checkpoints/my_model                   what a folder holds, without loading it
quicksviewer zoo load checkpoints/my_model --image cat.jpg --text "what is it?"
"""

import argparse
import math
import sys
import time
from pathlib import Path

from quicksviewer.utils.media import MediaError
from quicksviewer.zoo.files import read_config
from quicksviewer.zoo.options import DTYPES, LoadOptions
from quicksviewer.zoo.registry import FAMILIES, family_named, saved_class, task_saved


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 a checkpoint or picture could not be used, 2 wrong usage."""
    args = _parser().parse_args(argv)
    if args.word == "load" and (args.image is None) != (args.text is None):
        print("error: --image and --text belong together", file=sys.stderr)
        return 2
    try:
        args.run(args)
    except (ValueError, OSError, MediaError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quicksviewer zoo", description=__doc__.splitlines()[0])
    words = parser.add_subparsers(dest="word", required=True)
    words.add_parser("list", help="families, tasks and classes").set_defaults(run=_list)
    info = words.add_parser("info", help="what a checkpoint holds, without loading it")
    info.add_argument("model", help="a folder, or a name on the hub")
    info.set_defaults(run=_info)
    load = words.add_parser("load", help="load a checkpoint, show its parts, ask it")
    load.add_argument("model", help="a folder, or a name on the hub")
    load.add_argument("--model-type", choices=FAMILIES, help="default: what its config.json says")
    load.add_argument("--task", help="default: what it was saved for")
    load.add_argument("--device", help="default: CUDA where there is one")
    load.add_argument("--dtype", choices=DTYPES, help="default: that of the checkpoint")
    bits = load.add_mutually_exclusive_group()
    bits.add_argument("--4bit", dest="load_in_4bit", action="store_true", help="4-bit weights (nf4)")
    bits.add_argument("--8bit", dest="load_in_8bit", action="store_true", help="8-bit weights")
    load.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")
    load.add_argument("--detailed", action="store_true", help="also the tensors that learn")
    load.add_argument("--image", help="a picture to ask about")
    load.add_argument("--text", help="a question, the beginning of a caption, or what may be in the picture")
    load.set_defaults(run=_load)
    return parser


def _table(*columns: str):
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(thing) -> None:
    from rich.console import Console

    Console(markup=False, highlight=False).print(thing)


def _list(args) -> None:
    table = _table("family", "model_type", "task", "class")
    for name, row in FAMILIES.items():
        head = (name, ", ".join(row.model_types) or "any other")
        for task, target in row.tasks.items():
            table.add_row(*head, task, target.rpartition(":")[2])
            head = ("", "")
    _show(table)


def _info(args) -> None:
    config = read_config(args.model, LoadOptions())
    family = family_named(config)
    packed = config.get("quantization_config") or {}
    rows = {
        "family": family,
        "model_type": config.get("model_type"),
        "saved from": saved_class(config),
        "tasks": ", ".join(FAMILIES[family].tasks),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "quantised by": packed.get("quant_method"),
        "brings code of its own": "yes, run only with --trust-remote-code" if "auto_map" in config else None,
        **_weights(Path(args.model)),
    }
    table = _table(str(args.model), "")
    for key, value in rows.items():
        if value is not None:
            table.add_row(key, str(value))
    _show(table)


def _weights(folder: Path) -> dict:
    """Numbers stored and their size, from the heads of the files alone; nothing for a name on the hub."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return {}
    shapes = [shape for path in files for shape in _shapes(path)]
    size = sum(path.stat().st_size for path in files) / 2**20
    return {"weights": f"{len(shapes)} tensors, {sum(map(math.prod, shapes)):,} numbers, {size:.2f} MiB"}


def _shapes(path: Path) -> list[list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged weight file: {error}") from error


def _load(args) -> None:
    from quicksviewer.zoo.ask import ask
    from quicksviewer.zoo.loader import load_model
    from quicksviewer.zoo.report import print_model_summary

    config = read_config(args.model, LoadOptions())
    family = family_named(config, args.model_type)
    task = args.task or task_saved(config, family)
    start = time.perf_counter()
    loaded = load_model(
        args.model,
        args.model_type,
        task,
        args.device,
        load_processor=args.image is not None,
        dtype=args.dtype,
        load_in_4bit=args.load_in_4bit,
        load_in_8bit=args.load_in_8bit,
        trust_remote_code=args.trust_remote_code,
    )
    _show(f"{args.model}: {family}, {task}, loaded in {time.perf_counter() - start:.1f} s")
    print_model_summary(loaded["model"], args.detailed)
    if args.image is not None:
        _show(ask(family, task, loaded, args.image, args.text))


if __name__ == "__main__":
    sys.exit(main())

"""What a run will take: steps, memory of a GPU by part, the longest clip, time and cost.

No GPU and no weights are needed.

    python -m quicksviewer plan --recipe tiny --stage stage2 --gpus 2 --gpu a6000
    python -m quicksviewer plan --recipe 7b --stage stage3 --gpus 48 --gpu a100-80 --price 1.9 \\
        --rows 1000000 --seconds 180 --text_tokens 300

Any flag of `quicksviewer train` may follow. Sizes of rows are measured from the data of the run, read from a
--manifest, or said (--rows, --seconds, --text_tokens). docs/data.md says what is counted and what is guessed.
Exit code: 0 it fits, 1 it does not, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

from quicksviewer.data.manifest import Manifest
from quicksviewer.survey.forecast import Plan, Wishes, forecast
from quicksviewer.survey.hardware import CARDS, hardware
from quicksviewer.survey.shape import shape_of
from quicksviewer.survey.sizes import Sizes, measured
from quicksviewer.survey.subject import of_settings
from quicksviewer.train.args import read_settings
from quicksviewer.train.stages import check_paths
from quicksviewer.utils.config import save_json
from quicksviewer.utils.data_util import MediaError

GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    args, rest = _parser().parse_known_args(argv)
    try:
        settings = read_settings(rest, needs_files=False)
        machine = hardware(args.gpu, args.gpus, args.gpu_memory_gib, args.gpu_tflops, args.price)
        wishes = Wishes(
            said=None if args.rows is None else (args.rows, args.seconds, args.text_tokens),
            zero=args.zero,
            efficiency=args.efficiency,
        )
        sizes = None if args.rows is not None else _sizes(settings, args)
        plan = forecast(settings, shape_of(settings), machine, wishes, sizes)
    except (ValueError, OSError, MediaError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.out:
        save_json(Path(args.out) / "plan.json", plan)
    show(plan)
    return 0 if plan.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quicksviewer plan", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--gpus", type=int, required=True, help="how many")
    add("--gpu", help=f"which: {', '.join(CARDS)}")
    add("--gpu_memory_gib", type=float, help="memory of one, if not that of the card")
    add("--gpu_tflops", type=float, help="dense bfloat16 peak of one, if not that of the card")
    add("--price", type=float, help="of a GPU for an hour, in any currency")
    add(
        "--efficiency",
        type=float,
        default=0.35,
        help="share of the peak that is reached",
    )
    add("--zero", type=int, choices=range(4), help="stage of ZeRO, if not that of --deepspeed")
    add("--manifest", help="parquet file of `data index`, in the place of heads of files")
    add("--rows", type=int, help="in the place of the data: so many rows of one video each")
    add("--seconds", type=float, default=60, help="length of these videos")
    add("--text_tokens", type=int, default=256, help="tokens of text of these rows")
    add("--workers", type=int, default=2, help="processes that look at files; 0: this one")
    add("--out", help="folder for plan.json")
    return parser


def _sizes(settings, args) -> Sizes:
    """Sizes of the run's own rows. ValueError where its files are not here."""
    values = settings.values
    try:
        check_paths(settings.recipe, settings.stage, settings.model, settings.data, values.output_dir)
    except ValueError as error:
        raise ValueError(f"{error}\nTo plan without data: --rows, --seconds, --text_tokens") from error
    manifest = Manifest(args.manifest) if args.manifest else None
    return measured(of_settings(settings), args.workers, manifest)


def show(plan: Plan) -> None:
    """The plan on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(plan.name, style="bold", markup=False)
    console.print(
        f"{plan.steps:,} steps of {plan.step_rows} rows; a step has {plan.step_tokens:,.0f} tokens and "
        f"{plan.step_frames:,.0f} frames; {plan.samples:,} rows in all"
    )
    table = Table(title="Memory of each GPU", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("how known")
    for row in plan.memory:
        table.add_row(row.part, f"{row.bytes / GIB:,.2f}", row.known)
    total, room = plan.needed / GIB, plan.room / GIB
    table.add_row(
        "together", f"{total:,.2f}", f"of {room:,.1f}: " + ("fits" if plan.fits else "does not fit")
    )
    console.print(table)
    console.print(
        f"a step takes {plan.kept / GIB:,.2f} GiB when activations are kept, {plan.recomputed / GIB:,.2f} "
        f"when both transformers recompute theirs; logits at a time {plan.logits / GIB:,.2f}"
    )
    clip = plan.clip
    console.print(
        f"longest clip: {clip.frames:,} frames, {clip.seconds:,.0f} s, {clip.tokens:,} tokens; "
        f"bounded by {clip.bound}"
    )
    cost = "" if plan.cost is None else f", cost {plan.cost:,.2f}"
    console.print(
        f"time: {plan.hours:,.2f} h on {plan.gpus} GPUs at {plan.efficiency:.0%} of their peak "
        f"(assumed){cost}; {plan.flops:.3g} operations"
    )


if __name__ == "__main__":
    sys.exit(main())

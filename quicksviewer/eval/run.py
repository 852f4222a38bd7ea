"""Evaluate a checkpoint: load, ask, score, write one JSON that says how it came about.

    python -m quicksviewer eval world --model-path output/quickstart/stage3 --blind
    python -m quicksviewer eval videomme --model-path DIR --data Video-MME --frames 8 32 128 420 --processes 4

Greedy decoding, a fixed seed, and an unanswered question counts as wrong. A run that was stopped goes on
where it was when it is started again. See docs/evaluation.md.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from quicksviewer.data.preprocess import SampleError
from quicksviewer.eval.answering import GREEDY
from quicksviewer.eval.evaluation import Evaluation
from quicksviewer.eval.identity import digest_of, machine_facts, model_facts, weights_hash
from quicksviewer.eval.judge import Judge, JudgeError
from quicksviewer.eval.matrix import write_matrix
from quicksviewer.eval.report import report
from quicksviewer.eval.task import Benchmark, Item, read_prompt, spread
from quicksviewer.eval.tasks import TASKS, task_named
from quicksviewer.utils.dist import barrier, close_process_group

__all__ = ["TASKS", "main", "report", "weights_hash"]


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 nothing could be evaluated or the judge failed, 2 wrong usage."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    try:
        task = task_named(args.task)
        task = replace(task, max_new_tokens=args.max_new_tokens or task.max_new_tokens)
        judge = check(args, task)
        items = read_items(task, args)
        if (processes := how_many(args)) > 1:
            prepare(args, task, items)
            return launch(argv, processes)
        runs = prepare(args, task, items)
    except (SampleError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return work(runs, judge, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quicksviewer eval", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("task", help=", ".join(TASKS))
    parser.add_argument("--model-path", required=True, help="checkpoint folder, full or LoRA")
    parser.add_argument("--model-base", help="language model of a LoRA checkpoint, if it was moved")
    parser.add_argument("--data", help="folder of the task's files, as it is published")
    parser.add_argument("--videos", help="folder of the videos, where it is not the one inside --data")
    parser.add_argument("--output", help="result file (default: eval_TASK.json in the checkpoint)")
    parser.add_argument(
        "--frames",
        type=_count,
        nargs="+",
        default=[],
        help="most frames of a video; of "
        "several numbers each is a run, and a table compares them (default: as trained)",
    )
    parser.add_argument("--fps", type=float, help="frames per second (default: as trained)")
    parser.add_argument("--decoder", help="av, decord or torchcodec (default: as trained)")
    parser.add_argument(
        "--prompt", help="text file in place of the task's prompt, with {question}, {options}, {subtitles}"
    )
    parser.add_argument(
        "--max-new-tokens", type=_count, help="most tokens of an answer (default: the task's)"
    )
    parser.add_argument("--blind", action="store_true", help="ask again with the frames replaced by noise")
    parser.add_argument("--limit", type=_count, help="only so many items, from all over the task")
    parser.add_argument(
        "--batch-size", type=_count, default=8, help="items whose questions are answered together"
    )
    parser.add_argument("--decode-ahead", type=int, default=2, help="clips decoded while the model works")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that share the work; 0: one per GPU"
    )
    parser.add_argument("--fresh", action="store_true", help="throw away records of a run that was stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU of this process if there is one)")
    judge = parser.add_argument_group("judge", "an OpenAI-compatible endpoint, for tasks with open answers")
    judge.add_argument("--judge-url", help="address before /chat/completions, as in http://127.0.0.1:8000/v1")
    judge.add_argument("--judge-model", help="name of the model to ask for")
    judge.add_argument("--judge-key-env", default="JUDGE_API_KEY", help="environment variable with the key")
    judge.add_argument("--judge-timeout", type=float, default=60.0, help="seconds for one reply")
    judge.add_argument("--judge-workers", type=_count, default=4, help="questions under way at a time")
    judge.add_argument("--no-judge", action="store_true", help="record answers, to be judged by a later call")
    return parser


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


# --- before the work


def check(args, task: Benchmark) -> Judge | None:
    """The judge that the task needs. ValueError for flags that contradict each other or the task."""
    if args.decode_ahead < 0 or args.processes < 0:
        raise ValueError("--decode-ahead and --processes must be at least 0")
    if len(set(args.frames)) < len(args.frames):
        raise ValueError(f"--frames names a number twice: {args.frames}")
    given = args.judge_url or args.judge_model
    if not task.judges:
        if given or args.no_judge:
            raise ValueError(f"{args.task} has no use for a judge")
        return None
    if args.blind:
        raise ValueError(f"{args.task} is scored by a judge, and --blind asks no judge")
    if args.no_judge:
        if given:
            raise ValueError("give a judge or --no-judge, not both")
        return None
    if not (args.judge_url and args.judge_model):
        raise ValueError(
            f"{args.task} is scored by a judge: give --judge-url and --judge-model (a key, if it needs one, "
            f"in ${args.judge_key_env}), or --no-judge to record answers only"
        )
    return Judge(
        url=args.judge_url, model=args.judge_model, key_env=args.judge_key_env, timeout=args.judge_timeout
    )


def read_items(task: Benchmark, args) -> list[Item]:
    """The items that are asked. ValueError without data, or for two items of one name."""
    data = args.data or task.data
    if data is None:
        raise ValueError(f"--data must name the folder of {args.task}; see docs/evaluation.md for its files")
    items = spread(list(task.samples(Path(data), Path(args.videos) if args.videos else None)), args.limit)
    if not items:
        raise ValueError(f"{data} holds no items of {args.task}")
    seen = {}
    for item in items:
        if item.uid in seen:
            raise ValueError(f"{item.where} and {seen[item.uid]} are both called {item.uid!r}")
        seen[item.uid] = item.where
    return items


def how_many(args) -> int:
    """Processes to start: none more where a launcher has started them."""
    if "RANK" in os.environ:
        if args.fresh and int(os.environ["WORLD_SIZE"]) > 1:
            raise ValueError(
                "--fresh under a launcher: which of its processes should throw away what? Use "
                "--processes, or remove the .parts folder beside the result"
            )
        return 1
    return args.processes or max(1, torch.cuda.device_count())


def prepare(args, task: Benchmark, items: list[Item]) -> list[Evaluation]:
    """A run for each number of frames, with its folder of records begun."""
    from quicksviewer.model.builder import read_model_type
    from quicksviewer.model.processor import QuicksviewerProcessor

    read_model_type(args.model_path)
    processor = QuicksviewerProcessor.from_pretrained(args.model_path, local_files_only=True)
    fixed = {
        "task": args.task,
        **model_facts(args.model_path, args.model_base),
        **machine_facts(device_of(args)),
    }
    fixed |= {
        "data": str(args.data or task.data),
        "items": len(items),
        "items_sha256": digest_of([asdict(item) for item in items]),
        "template": processor.template,
        "prompt": read_prompt(Path(args.prompt), items) if args.prompt else task.prompt,
        "decoding": {"greedy": True, "max_new_tokens": task.max_new_tokens, **GREEDY},
        "seed": args.seed,
        "batch_size": args.batch_size,
        "blind": args.blind,
    }
    out, runs = Path(args.output or Path(args.model_path) / f"eval_{args.task}.json"), []
    for frames in args.frames or [None]:
        changes = {"max_frames": frames, "fps": args.fps, "decoder": args.decoder}
        media = processor.with_media(**{k: v for k, v in changes.items() if v is not None}).media
        path = out.with_name(f"{out.stem}_f{frames}.json") if len(args.frames) > 1 else out
        settings = {**fixed, "media": media}
        runs.append(Evaluation(task=task, items=items, out=path, settings=settings, ahead=args.decode_ahead))
    for run in runs:
        if args.fresh:
            run.records.discard()
        run.records.begin(run.settings)
    return runs


def device_of(args) -> str:
    if args.device:
        return args.device
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def launch(argv: list[str], processes: int) -> int:
    """The same command in several processes; what one of them has done is kept when another one fails."""
    words = [word for word in argv if word != "--fresh"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run([sys.executable, *launcher, "-m", "quicksviewer.eval.run", *words]).returncode


# --- the work


def work(runs: list[Evaluation], judge: Judge | None, args) -> int:
    """This process's share of every run, and the results of those that are whole then."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.manual_seed(args.seed)
    shares = [run.share(rank, world) for run in runs]
    meet(world)
    loaded, results = None, []
    try:
        for run, share in zip(runs, shares, strict=True):
            if share and loaded is None:
                loaded = load(args)
            results.append(work_on(run, share, loaded, judge, args, rank, world))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JudgeError as error:
        print(
            f"error: the judge cannot be asked: {error}\nanswers and verdicts are kept; the same command "
            "goes on",
            file=sys.stderr,
        )
        return 1
    if len(runs) > 1:
        write_matrix(runs, Path(args.output or Path(args.model_path) / f"eval_{args.task}_frames.json"))
    asked = [any(record["error"] is None for record in result["records"]) for result in results if result]
    return 0 if all(asked) else 1


def meet(world: int) -> None:
    """Wait until everybody has seen what is there, before somebody adds to it or takes it away."""
    if world == 1:
        return
    torch.distributed.init_process_group("gloo")
    try:
        barrier()
    finally:
        close_process_group()


def load(args):
    from quicksviewer.model.builder import load_pretrained_model

    return load_pretrained_model(args.model_path, args.model_base, device_of(args))


def work_on(run: Evaluation, share, loaded, judge, args, rank: int, world: int) -> dict | None:
    """One run: this process's batches, then the result if all others are there too."""
    with Progress(console=Console(stderr=True), transient=True, disable=rank > 0) as bar:
        answered = bar.add_task(run.out.stem, total=len(run.batches), completed=run.records.count())
        if share:
            media = run.settings["media"]
            own = replace(loaded, processor=loaded.processor.with_media(**media))
            run.compute(own, share, rank, world, lambda: bar.update(answered, completed=run.records.count()))
        verdicts = bar.add_task("judging", total=None, visible=judge is not None)
        result = run.close(judge, args.judge_workers, lambda: bar.advance(verdicts))
    if result is None:
        print(f"process {rank + 1} of {world} is done with {run.out.name}", file=sys.stderr)
    else:
        report(result, run.out)
    return result


if __name__ == "__main__":
    sys.exit(main())

"""Make the embedded world: videos, pictures, rows, tokenizer and warmed-up tiny models.

    python -m quicksviewer data make --recipe tiny

What is there already and was made by the same settings is kept.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager

from quicksviewer.synthetic.corpus import corpus_text, write_corpus
from quicksviewer.synthetic.recipe import SyntheticConfig, begin, finish, is_made
from quicksviewer.utils.config import build, load_mapping
from quicksviewer.utils.recipes import recipe_path

PROCESSES = 2
"""That the language model's warm-up is split over: the machine that this is sized for has two cores."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quicksviewer data", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["make"])
    parser.add_argument("--recipe", default="tiny", help="name in configs/recipes/, or a YAML file")
    parser.add_argument("--only", choices=["data", "tower", "lm"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        config = read_config(args.recipe)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.only:
        MAKERS[args.only](config)
        return 0
    make_all(config, args.recipe)
    return 0


def read_config(recipe: str) -> SyntheticConfig:
    """The section `synthetic` of a recipe."""
    path = recipe_path(recipe)
    values = load_mapping(path).get("synthetic")
    if values is None:
        raise ValueError(f"{path} has no section 'synthetic': it reads no embedded world")
    return build(SyntheticConfig, values, f"{path} > synthetic")


def make_all(config: SyntheticConfig, recipe: str) -> None:
    """All products: the tower beside the data, then the language model on all processes."""
    todo = [product for product in MAKERS if not is_made(config, product)]
    if not todo:
        print(f"the synthetic world is in {config.folder} already")
        return
    started = time.time()
    first = [start(product, recipe, 1) for product in todo if product != "lm"]
    wait(first)
    if "lm" in todo:
        wait([start("lm", recipe, 1 if config.family == "smollm2" else PROCESSES)])
    print(f"made {', '.join(todo)} in {config.folder} in {time.time() - started:.0f} s")


def start(product: str, recipe: str, processes: int) -> subprocess.Popen:
    """A process (or a group of them) that makes one product."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, "-m", "quicksviewer.synthetic.cli", "make", "--recipe", recipe, "--only", product]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait(jobs: list[subprocess.Popen]) -> None:
    """Until all are done; as soon as one fails the others are ended."""
    try:
        running = jobs
        while running := [job for job in running if job.poll() != 0]:
            if failed := [job for job in running if job.poll()]:
                raise SystemExit(f"making the synthetic world failed: {' '.join(failed[0].args[-5:])}")
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.terminate()


@contextmanager
def reporter(words: str, total: int):
    """A function to call after each piece of work; prints a line every few seconds, on the first process
    only."""
    quiet = os.environ.get("RANK", "0") != "0"
    state = {"done": 0, "shown": time.time()}

    def step(**figures):
        state["done"] += 1
        if not quiet and (time.time() - state["shown"] > 10 or state["done"] == total):
            state["shown"] = time.time()
            tail = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"{words}: {state['done']}/{total}  {tail}", flush=True)

    yield step


def make_data_product(config: SyntheticConfig) -> None:
    folder = begin(config, "data")
    total = config.corpus.videos + config.corpus.held_out
    with reporter("videos", total) as step:
        write_corpus(folder, config.world, config.corpus, step)
    finish(config, "data")


def make_tower_product(config: SyntheticConfig) -> None:
    import torch

    from quicksviewer.synthetic.pretrain import warm_tower
    from quicksviewer.synthetic.tiny import make_tower

    torch.set_num_threads(1)
    folder = begin(config, "tower")
    make_tower(folder, config.tower, config.pretrain.seed, **config.tower_shape)
    with reporter("tower warm-up", config.pretrain.tower_steps) as step:
        warm_tower(folder, config.world, config.pretrain, step)
    finish(config, "tower")


def make_lm_product(config: SyntheticConfig) -> None:
    import torch
    import torch.distributed as dist

    from quicksviewer.synthetic.pretrain import warm_language_model
    from quicksviewer.synthetic.smollm2 import write_smollm2
    from quicksviewer.synthetic.tiny import make_language_model
    from quicksviewer.utils.dist import barrier, close_process_group, is_main

    if config.family == "smollm2":
        write_smollm2(begin(config, "lm"))
        return finish(config, "lm")
    torch.set_num_threads(1)
    if "LOCAL_RANK" in os.environ:
        dist.init_process_group("gloo")
    folder = config.place("lm")
    if is_main():
        begin(config, "lm")
        texts = corpus_text(config.world, config.corpus)
        make_language_model(folder, config.family, texts, config.pretrain.seed, **config.lm_shape)
    barrier()
    with reporter("language model warm-up", config.pretrain.lm_steps) as step:
        warm_language_model(folder, config.template, config.world, config.corpus, config.pretrain, step)
    if is_main():
        finish(config, "lm")
    close_process_group()


MAKERS = {"data": make_data_product, "tower": make_tower_product, "lm": make_lm_product}

if __name__ == "__main__":
    sys.exit(main())

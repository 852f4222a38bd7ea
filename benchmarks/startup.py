"""From the start of the interpreter to the end of the first training step, on the tiny recipe.

    python -m quicksviewer data make --recipe tiny
    python benchmarks/startup.py [--repeats 3]

Prints one JSON: seconds of each repeat, and their median. The target is 20 s.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

TARGET_SECONDS = 20.0


def first_step_seconds() -> float:
    """Wall time of a fresh process until it logs its first step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--output_dir",
            folder,
            "--max_steps",
            "1000",
            "--logging_steps",
            "1",
            "--disable_tqdm",
            "True",
        ]
        command = [
            sys.executable,
            "-m",
            "quicksviewer.train.train",
            "--recipe",
            "tiny",
            "--stage",
            "stage1",
            *flags,
        ]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            for line in process.stdout:
                if "'loss'" in line:
                    return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
    raise SystemExit("the run ended before its first step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    seconds = [round(first_step_seconds(), 2) for _ in range(parser.parse_args().repeats)]
    median = statistics.median(seconds)
    print(
        json.dumps(
            {"seconds": seconds, "median": median, "target": TARGET_SECONDS, "pass": median < TARGET_SECONDS}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The readers of test_fuzz_stores.py under atheris: coverage of our code decides which mutation is followed.

    python tests/data/atheris_stores.py "frame store" output/fuzz/atheris/frame_store -max_total_time=60

Reader, folder of inputs (what led on is kept there, beginning with a valid file), flags of libFuzzer. An
input that crashes is written to the folder's parent. Needs the extra `fuzz`.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quicksviewer.data", "quicksviewer.utils"]):
    from test_fuzz_stores import READERS, jsonl, no_hang

    from quicksviewer.utils.array_file import CACHE_VARIABLE


def main() -> None:
    reader, inputs, *flags = sys.argv[1:]
    make, read, name, documented = READERS[reader]
    folder, inputs = Path(tempfile.mkdtemp()), Path(inputs)
    os.environ[CACHE_VARIABLE], jsonl.MIN_KEPT_BYTES = str(folder / "cache"), 0
    make(folder)
    (path,) = folder.glob(name)
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "valid").write_bytes(path.read_bytes())

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            with no_hang():
                read(folder)
        except documented:
            pass

    atheris.Setup([sys.argv[0], str(inputs), f"-artifact_prefix={inputs}-", *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

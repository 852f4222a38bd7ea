"""Train with repacked sequences: samples share rows up to a cap of tokens (and of frames), without padding.

    python -m torch.distributed.run --standalone --nproc_per_node 2 \\
        -m quicksviewer.train.train_repack --recipe tiny --stage stage1 --pack_max_tokens 4096

The same as train.py with --pack True, at one pack for each process and micro-batch. docs/batches.md tells
what a pack is and how large to make it.
"""

import sys

from quicksviewer.train import train

DEFAULTS = {"--pack": "True", "--per_device_train_batch_size": "1"}


def main(argv: list[str] | None = None) -> int:
    """Exit code as that of `train.main`. What the command line says itself is left as it is."""
    argv = list(sys.argv[1:] if argv is None else argv)
    said = {word.split("=")[0] for word in argv}
    return train.main([*argv, *(word for flag in DEFAULTS.items() if flag[0] not in said for word in flag)])


if __name__ == "__main__":
    sys.exit(main())

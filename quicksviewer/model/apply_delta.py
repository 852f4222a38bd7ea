"""Make a checkpoint from a base and a difference (see make_delta.py).

python -m quicksviewer.model.apply_delta --base-model-path BASE --target-model-path TARGET --delta-path DELTA
"""

import sys

from quicksviewer.model.delta import apply_delta, verify_delta
from quicksviewer.model.delta_command import parser_of, run


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = parser_of("apply", __doc__, base="of which the delta was made", target="written", delta="read")
    args = parser.parse_args(argv)
    return run(
        f"{args.delta_path} on {args.base_model_path}",
        lambda report: apply_delta(args.base_model_path, args.delta_path, args.target_model_path, report),
    )


def verify(argv: list[str] | None = None) -> int:
    """As `main`, but nothing is written: whether base and delta fit together and give the target."""
    parser = parser_of("verify", verify.__doc__, base="of which the delta was made", delta="read")
    args = parser.parse_args(argv)
    return run(
        f"{args.delta_path} on {args.base_model_path}",
        lambda report: verify_delta(args.base_model_path, args.delta_path, report),
    )


if __name__ == "__main__":
    sys.exit(main())

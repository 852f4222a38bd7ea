"""Write the difference between a base and a target checkpoint.

python -m quicksviewer.model.make_delta --base-model-path BASE --target-model-path TARGET --delta-path DELTA
"""

import sys

from quicksviewer.model.delta import FORMS, make_delta
from quicksviewer.model.delta_command import parser_of, run


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = parser_of(
        "make", __doc__, base="what the target was trained from", target="read", delta="written"
    )
    parser.add_argument(
        "--form",
        choices=FORMS,
        default="xor",
        help="xor gives the target back bit by bit, fp16 and fp32 are differences of numbers and round",
    )
    args = parser.parse_args(argv)
    return run(
        f"differences of {args.target_model_path}",
        lambda report: make_delta(
            args.base_model_path, args.target_model_path, args.delta_path, args.form, report
        ),
    )


if __name__ == "__main__":
    sys.exit(main())

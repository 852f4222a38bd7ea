"""What launchers do before they start processes: check the settings, and make the embedded world if it is
asked for.

python -m quicksviewer.train.prepare --recipe tiny --stage stage2 --max_steps 3
"""

import sys

from quicksviewer.synthetic import cli as synthetic
from quicksviewer.train.args import HEAD, read_settings
from quicksviewer.utils.config import load_mapping
from quicksviewer.utils.recipes import recipe_path


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 the run can start, 2 it cannot and the message says why, 1 the world could not be made."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        recipe = HEAD.parse_known_args(argv)[0].recipe
        if "synthetic" in load_mapping(recipe_path(recipe)) and (
            code := synthetic.main(["make", "--recipe", recipe])
        ):
            return code
        read_settings(argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

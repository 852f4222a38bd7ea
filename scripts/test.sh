#!/usr/bin/env bash
# Everything that a change must pass. Flags go to pytest: bash scripts/test.sh tests/utils -k config
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
bash scripts/setup.sh test
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
mapfile -t shell_scripts < <(find scripts quicksviewer -name '*.sh' -type f)
shellcheck .ci/run "${shell_scripts[@]}"
python -m pytest -p no:cacheprovider -m "not slow" --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"

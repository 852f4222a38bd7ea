#!/usr/bin/env bash
# Makes .venv with the package and the named extras (default: test). A second call has nothing to do.
#   bash scripts/setup.sh [EXTRA...]       PYTHON=python3.12 chooses another interpreter
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
[[ $# -gt 0 ]] || set -- test
python=${PYTHON:-python3}
stamp=.venv/setup.done
say() { printf '[setup] %s\n' "$*"; }

if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "$python is $("$python" --version 2>&1 || true): Python 3.11 or newer is needed, name one with PYTHON=" >&2
    exit 1
  fi
  say ".venv from $("$python" --version)"
  "$python" -m venv .venv
fi
export PATH="$PWD/.venv/bin:$PATH" DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1

# A line of the stamp: what the environment was made from, and for which extras. Other files make all lines void.
files=$({ pwd -P && cat pyproject.toml constraints.txt configs/assets/*; } |
  python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if grep -qxF "$files $*" "$stamp" 2>/dev/null; then
  say "nothing to do"
  exit
fi
torch=$(grep '^torch==' constraints.txt)
extras=$(IFS=, && echo "$*")
say "$torch"
python -m pip install --quiet -c constraints.txt "$torch" # first, or another package would choose a newer one
say "quicksviewer[$extras]"
python -m pip install --quiet -c constraints.txt -e ".[$extras]"
for extra; do
  [[ ! -f configs/assets/$extra.txt ]] || python -m pip install --quiet --no-deps -r "configs/assets/$extra.txt"
done
bash scripts/system_packages.sh "$@"
grep -q "^$files " "$stamp" 2>/dev/null || : >"$stamp"
echo "$files $*" >>"$stamp"
say "done in $SECONDS s"

#!/usr/bin/env bash
# What the package needs and not the package, into a new virtual environment: a layer for all changes of the code.
#   dependencies.sh VENV TORCH_VERSION EXTRAS [TORCH_INDEX]      beside pyproject.toml and constraints.txt
set -euo pipefail
venv=$1 torch=$2 extras=$3 index=${4:-}
constraints=$venv/constraints.txt requirements=$venv/requirements.txt

python3 -m venv "$venv"
{ grep -v '^torch==' constraints.txt && echo "torch==$torch"; } >"$constraints"
"$venv/bin/python" - "$extras" >"$requirements" <<'PYTHON'
import sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = [extra for extra in sys.argv[1].split(",") if extra]
if unknown := [extra for extra in wanted if extra not in extras]:
    sys.exit(f"pyproject.toml has no extra {', '.join(unknown)}; it has {', '.join(extras)}")
lines = [*project["dependencies"], *(line for extra in wanted for line in extras[extra])]
if own := [line for line in lines if line.startswith("quicksviewer[")]:
    sys.exit(f"name the extras themselves in place of {', '.join(own)}")
print("\n".join(lines))
PYTHON
install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -c "$constraints")
# First, or another package would choose one; what it needs comes with the rest, from where the rest comes.
"${install[@]}" --no-deps ${index:+--index-url "$index"} "torch==$torch"
"${install[@]}" -r "$requirements"

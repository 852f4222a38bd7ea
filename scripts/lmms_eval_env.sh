#!/usr/bin/env bash
# An environment of its own for lmms-eval, which pins other versions: bash scripts/lmms_eval_env.sh [FOLDER]
# Then: FOLDER/bin/python -m lmms_eval --model quicksviewer --model_args pretrained=DIR --tasks ...
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
folder=${1:-.venv-lmms}
"${PYTHON:-python3}" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet)
"${pip[@]}" --constraint constraints.txt torch
"${pip[@]}" torch=="$("$folder/bin/python" -c 'import torch; print(torch.__version__.split("+")[0])')" \
  "$(grep '^transformers==' constraints.txt)" lmms-eval==0.7.3 rich
"${pip[@]}" --no-deps "$(grep '^av==' constraints.txt)" # lmms-eval asks for an older one, which our reader does not know
# Without the GPU libraries that it was built for, torchvision breaks transformers.
"$folder/bin/python" -c 'import torchvision' 2>/dev/null || "$folder/bin/python" -m pip uninstall --quiet --yes torchvision
[[ -n ${WITHOUT_PACKAGE:-} ]] || "${pip[@]}" --no-deps --editable .
"$folder/bin/python" -c 'import lmms_eval.evaluator; print("lmms-eval is ready")'

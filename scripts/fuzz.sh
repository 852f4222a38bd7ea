#!/usr/bin/env bash
# Mutated stores, manifests and rows for the readers, each for FUZZ_SECONDS (60). What fails is kept in
# FUZZ_EXAMPLES (output/fuzz) and tried first the next time. With the extra `fuzz` atheris does the same.
#   bash scripts/fuzz.sh            FUZZ_SECONDS=600 bash scripts/fuzz.sh -k "tar or manifest"
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
export FUZZ_SECONDS=${FUZZ_SECONDS:-60} FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-output/fuzz}
python -m pytest -p no:cacheprovider tests/data/test_fuzz_stores.py "$@"
[[ $# -eq 0 ]] || exit 0 # what -k chooses is of pytest alone

if ! python -c 'import atheris' 2>/dev/null; then
  printf "[fuzz] no atheris here: pip install -e '.[fuzz]'\n"
  exit
fi
readers=(jsonl "tsv rows" "tsv offsets" "tsv names" "frame store" tar manifest)
for reader in "${readers[@]}"; do
  printf '[fuzz] atheris: %s\n' "$reader"
  inputs=$FUZZ_EXAMPLES/atheris/${reader// /_}
  python tests/data/atheris_stores.py "$reader" "$inputs" -max_total_time="${FUZZ_SECONDS%.*}" -verbosity=0
done

#!/usr/bin/env bash
# From an empty clone to a trained, tried and measured model of the embedded world. The last line is its accuracy.
# Stages that are complete are kept; delete output/quickstart to start anew.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
out=output/quickstart
# step NAME COMMAND...
step() {
  local name=$1 start=$SECONDS
  printf '\n== %s\n' "$name"
  "${@:2}"
  printf '== %s took %d s\n' "$name" $((SECONDS - start))
}

step "set-up" bash scripts/setup.sh
export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
# The recipe is sized for processors: the same run with and without a GPU.
export RECIPE=tiny CUDA_VISIBLE_DEVICES="" NPROC_PER_NODE="${NPROC_PER_NODE:-2}"
# shellcheck source=/dev/null
source scripts/common.sh

step "data" python -m quicksviewer data make --recipe tiny
start_from=()
is_kept=1
for stage in stage1 stage2 stage3; do
  if [[ -n $is_kept && -e $out/$stage/COMPLETE ]]; then
    printf '\n== %s is complete, kept\n' "$stage"
  else
    is_kept="" # a stage that starts from a new one is made anew too
    rm -rf "${out:?}/$stage"
    step "$stage" bash "scripts/$stage.sh" --output_dir "$out/$stage" --deepspeed zero2.json "${start_from[@]}"
  fi
  start_from=(--model_name_or_path "$out/$stage")
done
video=output/world/data/videos/held_out/00007.mp4
step "three questions about $video, which it has never seen" python -m quicksviewer chat \
  --model-path "$out/stage3" --context "$video" --showcase output/showcase.png \
  --ask "What happens when?" "Which is last?" "How many colours?"
printf '\n== accuracy on held-out videos, and blind (after %d s)\n' "$SECONDS"
python -m quicksviewer eval world --model-path "$out/stage3" --blind

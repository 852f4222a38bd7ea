#!/usr/bin/env bash
# Example: ShareGPT4Video into rows and a TSV store, then only the rows whose media decode.
#   bash quicksviewer/preprocess/run_prepro.sh DATA_ROOT [WORKERS] [FLAG...]   DRY_RUN=1 prints the commands
set -euo pipefail
data=${1:?the folder that holds sharegpt4video_40k.jsonl and its videos}
workers=${2:-$(nproc)}
out="$data/quicksviewer"

# step COMMAND...
step() {
  if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@" && echo && return; fi
  "$@"
}

step python -m quicksviewer.preprocess.convert_sharegpt4video \
  --input "$data/sharegpt4video_40k.jsonl" --media_root "$data/videos" \
  --output "$out" --tsv_output "$out/store" --num_workers "$workers" "${@:3}"

step python -m quicksviewer.preprocess.change_datasets --func filter \
  --root_dir "$out" --keywords sharegpt4video --media_root "$data/videos" --num_workers "$workers"

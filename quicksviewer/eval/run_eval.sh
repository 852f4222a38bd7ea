#!/usr/bin/env bash
# One benchmark: bash quicksviewer/eval/run_eval.sh TASK CKPT NFRAMES FPS [FLAG...]
# One process per GPU, or NPROC_PER_NODE; further flags are those of `quicksviewer eval`. DRY_RUN=1 prints it.
set -euo pipefail
usage="bash quicksviewer/eval/run_eval.sh TASK CKPT NFRAMES FPS [FLAG...]"
task=${1:?a task, as in: $usage}
checkpoint=${2:?a checkpoint folder, as in: $usage}
frames=${3:?the most frames of a video, as in: $usage}
fps=${4:?frames per second, as in: $usage}

cmd=(python -m quicksviewer eval "$task" --model-path "$checkpoint" --frames "$frames" --fps "$fps")
cmd+=(--processes "${NPROC_PER_NODE:-0}" "${@:5}")
[[ -z ${DRY_RUN:-} ]] || { printf '%q ' "${cmd[@]}" && echo && exit; }
exec "${cmd[@]}"

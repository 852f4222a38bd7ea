# shellcheck shell=bash
# Sourced by every launcher: knows the cluster, knows no stage. DRY_RUN=1 prints the command.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/.."
[[ -n ${VIRTUAL_ENV:-} || ! -x .venv/bin/python ]] || export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

# GPUs of this node that the run may use.
num_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]' || true # -1 hides them all
  else
    nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
  fi
}
((GPUS=$(num_gpus))) || export DS_ACCELERATOR=cpu OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# first_host NODES   Where the nodes meet.
first_host() {
  if [[ -n ${MASTER_ADDR:-} ]]; then echo "$MASTER_ADDR" && return; fi
  if [[ $1 == 1 ]]; then echo 127.0.0.1 && return; fi
  scontrol show hostnames "${SLURM_JOB_NODELIST:?more than one node needs MASTER_ADDR}" | sed -n 1p
}

# launch STAGE FLAG...   The caller's flags win.
launch() {
  local nodes=${NNODES:-${SLURM_NNODES:-1}} cluster=(--standalone) host cmd
  if [[ $nodes != 1 || -n ${MASTER_ADDR:-}${MASTER_PORT:-} ]]; then
    host=$(first_host "$nodes")
    cluster=(--nnodes "$nodes" --node_rank "${NODE_RANK:-${SLURM_NODEID:-0}}" --master_addr "$host")
    cluster+=(--master_port "${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-9500} % 20000))}") # one per job
  fi
  cluster+=(--shutdown_timeout "${SHUTDOWN_TIMEOUT:-110}") # seconds in which a stopped run writes its checkpoint
  cluster+=(--nproc_per_node "${NPROC_PER_NODE:-$((GPUS ? GPUS : 1))}" ${MAX_RESTARTS:+--max_restarts "$MAX_RESTARTS"})
  cmd=(python -m torch.distributed.run "${cluster[@]}" -m "${ENTRY:-quicksviewer.train.train}")
  cmd+=(--recipe "${RECIPE:-7b}" --stage "$1" ${MAX_RESTARTS:+--resume_from_checkpoint last} "${@:2}")
  [[ -z ${DRY_RUN:-} ]] || { printf '%q ' "${cmd[@]}" && echo && exit; }
  python -m quicksviewer.train.prepare --recipe "${RECIPE:-7b}" --stage "$1" "${@:2}"
  exec "${cmd[@]}"
}

#!/usr/bin/env bash
# Programs of the system that the named extras use (configs/assets/EXTRA.apt). Without the right to install them this
# says which are missing; the tests that need one are then left out.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
say() { printf '[setup] %s\n' "$*"; }

missing=()
for extra; do
  [[ -f configs/assets/$extra.apt ]] || continue
  while read -r package; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done < <(grep -v '^#' "configs/assets/$extra.apt")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null; then
  say "apt-get install ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  if { apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    exit 0
  fi
  tail -n 3 "$log" >&2
fi
say "not installed: ${missing[*]}; what needs them is left out" >&2

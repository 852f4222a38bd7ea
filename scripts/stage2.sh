#!/usr/bin/env bash
# Stage 2, joint pre-training: the vision tower wakes up and learns with them.
# shellcheck source=/dev/null
source "$(dirname "$(realpath "$0")")/common.sh"

launch stage2 "$@"

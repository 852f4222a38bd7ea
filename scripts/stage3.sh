#!/usr/bin/env bash
# Stage 3, instruction tuning on longer videos: everything learns, the language model included.
# shellcheck source=/dev/null
source "$(dirname "$(realpath "$0")")/common.sh"

launch stage3 "$@"

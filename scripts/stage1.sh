#!/usr/bin/env bash
# Stage 1, alignment: resampler, projector and cubing learn to speak to a frozen language model.
# shellcheck source=/dev/null
source "$(dirname "$(realpath "$0")")/common.sh"

launch stage1 "$@"

#!/usr/bin/env bash
# Unload and load a model under traffic, N times: what the server holds must not grow.
#
#   scripts/reloads.sh [--times N]
#
# Needs what scripts/test.sh has put in place. Talks to loopback only, and stops by itself. Prints
# what the server holds after each; exit code 1 if anything was wrong. 30 to 60 seconds each time.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
export TRITON_VLLM_CACHE="$CACHE" PATH="$CACHE/venv/bin:$PATH"
export TRITON_SERVER_DIR="${TRITON_SERVER_DIR:-$CACHE/triton/pytriton/tritonserver}"
export TRITON_VLLM_ENV="${TRITON_VLLM_ENV:-$CACHE/model_repository/vllm/vllm_env}"
exec python -m tests.reloads "$@"

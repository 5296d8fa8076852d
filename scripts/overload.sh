#!/usr/bin/env bash
# Flood a server of our own with four times what it admits: each request is answered or refused.
#
#   scripts/overload.sh [--requests N]
#
# Needs what scripts/test.sh has put in place. Talks to loopback only, and stops by itself. Prints
# how the requests ended, and what the server held; exit code 1 if anything was wrong.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cd "$ROOT"
export TRITON_VLLM_CACHE="$CACHE" PATH="$CACHE/venv/bin:$PATH"
export TRITON_SERVER_DIR="${TRITON_SERVER_DIR:-$CACHE/triton/pytriton/tritonserver}"
export TRITON_VLLM_ENV="${TRITON_VLLM_ENV:-$CACHE/model_repository/vllm/vllm_env}"
exec python -m tests.overload "$@"

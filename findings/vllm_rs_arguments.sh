#!/usr/bin/env bash
# vLLM 0.32.0's Rust front end: what becomes of arguments that it does not implement.
#
# `vllm serve` passes its arguments to the Rust front end (VLLM_USE_RUST_FRONTEND=1) as one JSON
# object. The front end treats them in three ways:
#   refused   an argument that it knows and has not implemented, such as root_path
#   ignored   enable_auto_tool_choice, with a warning: its tool parser is "auto" by default, so it
#             parses tool calls where the Python server with the same arguments does not
#   silent    a key that it does not know, such as a misspelt one: no error and no warning
# A supervisor that builds this JSON itself must therefore check the names first.
#
# Output seen on 2026-11-28:
#   refused: The following arguments are not implemented in Rust frontend yet: - root_path
#   ignored: argument 'enable_auto_tool_choice' currently has no effect in Rust frontend, ignoring
#   silent: 0 lines name served_model_nam
#   default: --tool-call-parser auto
#
# Downloads the wheel (330 MB) into a temporary folder and runs the binary in it: no GPU, no engine,
# no model. Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --dest "$folder" vllm==0.32.0
python3 - "$folder" <<'EOP'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("vllm-*.whl")
(folder / "vllm-rs").write_bytes(zipfile.ZipFile(wheel).read("vllm/vllm-rs"))
EOP
chmod +x "$folder/vllm-rs"

# front_end JSON: start it without an engine; it checks its arguments before it looks for the model.
front_end() {
    "$folder/vllm-rs" frontend --listen-fd 100 --input-listener-fd 101 --output-listener-fd 102 \
        --args-json "$1" 2>&1 | sed 's/\x1b\[[0-9;]*m//g' | tr '\n' ' ' || true
}

failed=0
# expect NAME TEXT PATTERN
expect() {
    if grep -q -e "$3" <<<"$2"; then
        printf '%s: %s\n' "$1" "$(grep -o -e "$3" <<<"$2" | head -n 1)"
    else
        printf '%s: DIFFERENT: %s\n' "$1" "$2"
        failed=1
    fi
}

model="$folder/no-model"
expect refused "$(front_end "{\"model_tag\": \"$model\", \"root_path\": \"/llm\"}")" \
    'The following arguments are not implemented in Rust frontend yet: - root_path'
expect ignored "$(front_end "{\"model_tag\": \"$model\", \"enable_auto_tool_choice\": true}")" \
    "argument 'enable_auto_tool_choice' currently has no effect in Rust frontend, ignoring"
named="$(front_end "{\"model_tag\": \"$model\", \"served_model_nam\": [\"m\"]}" | grep -c served_model_nam || true)"
expect silent "$named lines name served_model_nam" '^0 lines name served_model_nam'
parser="$("$folder/vllm-rs" serve --help | grep -A 3 -e '--tool-call-parser' | tr '\n' ' ')"
[[ "$parser" == *'[default: auto]'* ]] && parser='--tool-call-parser auto'
expect default "$parser" '--tool-call-parser auto'
exit "$failed"

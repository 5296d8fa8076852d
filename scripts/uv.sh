#!/usr/bin/env bash
# Install Python packages with uv, for lib.sh and gen_vllm_env.sh. Source it: it only defines
# functions, which need the caller's "say" and "err".

REQUIREMENTS="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/requirements"

# use_uv FOLDER: set UV to uv's path, and give uv what pip's settings say of indexes, wheel folders
# and certificates. A uv on PATH is taken if it has what is needed here, else FOLDER gets one.
use_uv() {
    local python=python3 line
    [ -z "${uv_ready:-}" ] || return 0
    UV="$(command -v uv || true)"
    # Not every uv can leave packages out of a resolution.
    if [ -z "$UV" ] || ! "$UV" pip install --help 2>/dev/null | grep -q -e --excludes; then
        UV=$1/bin/uv
        [ "$(cat "$1/stamp" 2>/dev/null)" = "$(cat "$REQUIREMENTS/uv.lock")" ] || install_uv "$1"
    fi
    [ ! -x "$1/pip/bin/python" ] || python=$1/pip/bin/python
    while IFS= read -r line; do
        export "${line?}"
    done < <(python3 "${REQUIREMENTS%/*}/scripts/pip_settings.py" "$python")
    export UV UV_PYTHON_DOWNLOADS=never
    uv_ready=yes
}

# install_uv FOLDER: with the pip of python3, else with one in FOLDER.
install_uv() {
    local python=python3
    rm -rf "$1"
    mkdir -p "$1" || err "cannot create $1"
    if ! python3 -c 'import pip' 2>/dev/null; then
        python3 -m venv "$1/pip" >&2 || err "python3 has neither pip nor venv: install python3-venv"
        python=$1/pip/bin/python
    fi
    "$python" -m pip install -qq --no-deps --require-hashes --only-binary :all: --target "$1" \
        --requirement "$REQUIREMENTS/uv.lock" >&2 ||
        err "pip cannot install uv, its reason is above: check the network and PIP_INDEX_URL, then run this again"
    cp "$REQUIREMENTS/uv.lock" "$1/stamp"
}

# uv_install LOCK OPTION...: install the packages that requirements/LOCK names, and no others.
uv_install() {
    "$UV" pip install --quiet ${UV_NO_INDEX:+--no-index} --no-deps --compile-bytecode "${@:2}" --requirement "$REQUIREMENTS/$1"
}

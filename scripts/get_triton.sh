#!/usr/bin/env bash
# Get a real Triton server without docker: the one inside the PyPI package nvidia-pytriton.
#
#   scripts/get_triton.sh [--python 3.11] [DEST]
#
#   DEST          default .cache/triton (TRITON_VLLM_CACHE moves .cache)
#   --python X.Y  the Python minor of the models' execution environment, 3.8 to 3.13. Default: that
#                 of python3 if it is 3.11 or 3.12, else the nearer of the two: only these have
#                 both vLLM for the CPU and numpy 1, which this Triton needs
#
# Writes DEST/pytriton/tritonserver and DEST/nvidia_pytriton.libs, about 145 MB, in the wheel's
# own layout, because its programs find their libraries by relative paths. PyTriton's Python
# code is not kept. Takes a few seconds and a 55 MB download; nothing if it exists already.
# The last line on stdout is the path of the tritonserver folder.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WHEEL=nvidia-pytriton==0.7.0 # tritonserver 2.51.0, as in the container 24.10
WHEEL_SHA256=21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
WHEEL_PLATFORM=manylinux_2_35_x86_64

main() {
    local dest="$CACHE/triton" minor=""
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --python) minor="${2:-}"; [ -n "$minor" ] || err "--python needs a minor version such as 3.11"; shift ;;
            -*) err "unknown option $1: see --help" ;;
            *) dest="$1" ;;
        esac
        shift
    done
    need_python
    minor="${minor:-$(environment_minor)}"

    if [ "$(cat "$dest/stamp" 2>/dev/null)" != "$WHEEL" ]; then
        check_machine
        install_wheel "$dest"
    fi
    choose_stub "$dest/pytriton/tritonserver" "$minor"
    (cd "$dest/pytriton/tritonserver" && pwd)
}

check_machine() {
    [ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] ||
        err "$WHEEL runs on Linux x86_64 only, and this is $(uname -s) $(uname -m): use Triton's container"
    local glibc
    glibc="$(getconf GNU_LIBC_VERSION 2>/dev/null | awk '{ print $2 }')"
    [ "$(printf '%s\n' 2.35 "${glibc:-0}" | sort -V | head -n 1)" = 2.35 ] ||
        err "$WHEEL needs glibc 2.35 and this machine has ${glibc:-another C library}: use Ubuntu 22.04, Debian 12 or newer"
}

install_wheel() {
    local dest="$1" temp
    mkdir -p "$(dirname "$dest")" || err "cannot create $(dirname "$dest"): choose another DEST"
    need_free_mb "$(dirname "$dest")" 400
    temp="$(mktemp -d "$dest.part.XXXXXX")"
    # shellcheck disable=SC2064  # the value of now
    trap "rm -rf '$temp'" EXIT
    say "downloading $WHEEL, 55 MB"
    download_wheel "$temp" "$WHEEL" "$WHEEL_SHA256" --platform "$WHEEL_PLATFORM"
    unpack_wheel "$temp"

    mkdir -p "$temp/triton/pytriton"
    mv "$temp/wheel/nvidia_pytriton.libs" "$temp"/wheel/*.dist-info "$temp/triton/"
    mv "$temp/wheel/pytriton/tritonserver" "$temp/triton/pytriton/"
    # zipfile drops the executable bits
    chmod 755 "$temp"/triton/pytriton/tritonserver/{bin/*,python_backend_stubs/*/*}
    # --help exits with 1, and writes to stderr
    "$temp/triton/pytriton/tritonserver/bin/tritonserver" --help >"$temp/help" 2>&1 || true
    grep -q "^Usage: tritonserver" "$temp/help" ||
        err "the unpacked tritonserver does not start: $(head -n 1 "$temp/help")"

    printf '%s\n' "$WHEEL" >"$temp/triton/stamp"
    rm -rf "$dest"
    mv -T "$temp/triton" "$dest"
}

# The stub must lie in the backend's folder: from there it finds the wheel's libraries.
choose_stub() {
    local stub="$1/python_backend_stubs/$2/triton_python_backend_stub" place="$1/backends/python"
    [ -f "$stub" ] ||
        err "$WHEEL has no stub for Python $2: choose one of $(cd "$1/python_backend_stubs" && echo *) with --python"
    cmp -s "$stub" "$place/triton_python_backend_stub" && return
    cp -p "$stub" "$place/stub.new"
    mv "$place/stub.new" "$place/triton_python_backend_stub"
    say "Triton's Python backend now runs Python $2"
}

main "$@"

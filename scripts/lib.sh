#!/usr/bin/env bash
# Functions that the other scripts share. Source it; it writes nothing and starts nothing.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${TRITON_VLLM_CACHE:-$ROOT/.cache}"
case "$CACHE" in /*) ;; *) CACHE="$PWD/$CACHE" ;; esac
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# shellcheck source=scripts/uv.sh disable=SC1091
. "$ROOT/scripts/uv.sh"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
err() { say "error: $*"; exit 1; }
need_cmd() { command -v "$1" >/dev/null || err "needs '$1', which is not on PATH: install ${2:-$1}"; }

# usage: print the calling script's header, its leading comment lines.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

need_python() {
    need_cmd python3 "Python 3.10 to 3.13"
    python3 -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
        err "python3 is $(python3 --version): put a Python 3.10 to 3.13 first on PATH"
    python3 -c 'import pip' 2>/dev/null || python3 -c 'import ensurepip' 2>/dev/null ||
        err "python3 has neither pip nor venv: install python3-venv"
}

# uv's downloads stay in the cache, and installed files there are links to them, which take no room.
# gen_vllm_env.sh uses the same two folders, by these variables.
export UV_CACHE_DIR="${UV_CACHE_DIR:-$CACHE/uv/cache}" UV_FOLDER="$CACHE/uv/program"

# need_uv: set UV to the path of uv.
need_uv() { use_uv "$UV_FOLDER"; }

# make_venv FOLDER LOCK: make an environment of python3 with the packages of requirements/LOCK, unless
# it exists.
make_venv() {
    local stamp
    stamp="$(python3 --version) $(sha256sum <"$REQUIREMENTS/$2")"
    [ "$(cat "$1/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    need_uv
    rm -rf "$1"
    "$UV" venv --quiet --python python3 "$1" >&2 || err "uv cannot make an environment in $1, see its error above"
    uv_install "$2" --python "$1/bin/python" >&2 || uv_failed "$2"
    printf '%s\n' "$stamp" >"$1/stamp"
}

# make_package_folder FOLDER LOCK PYTHON: make a folder for PYTHONPATH with the packages of
# requirements/LOCK, for the interpreter PYTHON.
make_package_folder() {
    local stamp
    stamp="$("$3" --version) $(sha256sum <"$REQUIREMENTS/$2")"
    [ "$(cat "$1.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    need_uv
    rm -rf "$1" "$1.stamp"
    uv_install "$2" --python "$3" --target "$1" >&2 || uv_failed "$2"
    printf '%s\n' "$stamp" >"$1.stamp"
}

uv_failed() {
    err "uv cannot install requirements/$1, see its error above: check the network and PIP_INDEX_URL, then run this again"
}

# need_free_mb FOLDER MB: the file system that holds FOLDER has that much to spare.
need_free_mb() {
    local free
    free="$(df -Pm "$1" | awk 'NR == 2 { print $4 }')"
    [ "$free" -ge "$2" ] ||
        err "$1 has $free MB free and needs $2 MB: make room, or set TRITON_VLLM_CACHE to a folder on a larger disk"
}

# download_wheel FOLDER NAME==VERSION SHA256 [pip option...]: exactly that file, or an error.
download_wheel() {
    local folder="$1" requirement="$2" sha256="$3" python=python3
    shift 3
    need_uv
    [ ! -x "$UV_FOLDER/pip/bin/python" ] || python=$UV_FOLDER/pip/bin/python
    printf '%s --hash=sha256:%s\n' "$requirement" "$sha256" >"$folder/requirement.txt"
    "$python" -m pip download -qq --no-cache-dir --no-deps --only-binary=:all: "$@" \
        --dest "$folder" --requirement "$folder/requirement.txt" >&2 ||
        err "pip cannot download $requirement, see its error above: check the network and PIP_INDEX_URL, then run this again"
}

# unpack_wheel FOLDER: FOLDER/*.whl into FOLDER/wheel.
unpack_wheel() {
    local said
    said="$(python3 -m zipfile -e "$1"/*.whl "$1/wheel" 2>&1)" ||
        err "cannot unpack $(basename "$1"/*.whl) (${said##*$'\n'}): check the free space, then run this again"
}

# small_engine_args CHECKPOINT: a vllm_engine_args.json for a small model on a few cores.
# A small KV cache of a fixed size and eager mode save vLLM its warm-up. A request without max_tokens
# would go on to the end of the context, which takes minutes on a CPU.
small_engine_args() {
    cat <<EOA
{
  "model": "$1",
  "dtype": "bfloat16",
  "max_model_len": 1024,
  "max_num_seqs": 16,
  "kv_cache_memory_bytes": 268435456,
  "enforce_eager": true,
  "serving": {"default_max_tokens": 128}
}
EOA
}

EMBEDDED_TRITON=2.51.0 # the release of Triton that scripts/get_triton.sh gets

# environment_minor: the Python minor of the execution environment: python3's, if vLLM's package for
# the CPU (3.11 and newer) and the embedded Triton (numpy 1, so 3.12 and older) both run on it.
environment_minor() { python3 -c 'import sys; print(f"3.{min(max(sys.version_info.minor, 11), 12)}")'; }

# vLLM's kernels for the CPU are linked with libnuma, which slim images leave out.
need_libnuma() {
    python3 -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        err "needs libnuma.so.1, which vLLM on a CPU loads: install it (Debian, Ubuntu: libnuma1; Fedora: numactl-libs)"
}

# demo_environment FOLDER: the environment with vLLM, for the embedded Triton, in the model's folder.
demo_environment() {
    PYTHON_VERSION="$(environment_minor)" TRITON_VERSION="$EMBEDDED_TRITON" \
        "$ROOT/gen_vllm_env.sh" --device cpu --format dir --model-dir "$1" --triton none
}

# run_with_triton MODULE...: a module of tests/, with what scripts/test.sh has put in place.
run_with_triton() {
    cd "$ROOT" || exit
    export TRITON_VLLM_CACHE="$CACHE" PATH="$CACHE/venv/bin:$PATH"
    export TRITON_SERVER_DIR="${TRITON_SERVER_DIR:-$CACHE/triton/pytriton/tritonserver}"
    export TRITON_VLLM_ENV="${TRITON_VLLM_ENV:-$CACHE/model_repository/vllm/vllm_env}"
    exec python -m "$@"
}

# debian_program FOLDER PROGRAM VERSION_FLAG PACKAGE [FURTHER]: PACKAGE's files in FOLDER, unpacked,
# not installed, with PROGRAM in it, which can be asked for its version. The package FURTHER is not
# there everywhere, and then not needed.
debian_program() {
    local target="$1" program="$2" flag="$3" package="$4" further="${5:-}" deb
    if "$target/$program" "$flag" >/dev/null 2>&1; then
        say "$target: there already"
        return
    fi
    need_cmd apt-get
    need_cmd dpkg
    rm -rf "$target.new"
    mkdir -p "$target.new"
    cd "$target.new" || exit
    apt_download "$package" || { [ "$(id -u)" = 0 ] && apt-get update -q >&2 && apt_download "$package"; } ||
        err "apt-get cannot download $package, see its error above: run apt-get update as root, then this again"
    [ -z "$further" ] || apt_download "$further" 2>/dev/null || true
    for deb in *.deb; do
        dpkg -x "$deb" .
        rm "$deb"
    done
    "./$program" "$flag" >/dev/null 2>&1 ||
        err "the unpacked $target.new/$program does not run: $("./$program" "$flag" 2>&1)"
    rm -rf "$target"
    mv "$target.new" "$target"
    say "$target: $("$target/$program" "$flag" 2>&1 | head -n 1)"
}

# As the user who asks: the folder need not be readable for apt's own.
apt_download() { apt-get download -q -o APT::Sandbox::User="$(id -un)" "$1" >&2; }

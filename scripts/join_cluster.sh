#!/usr/bin/env bash
# Join this machine to the cluster that one engine runs on: a node of Ray, or engines of vLLM.
#
#   scripts/join_cluster.sh [--env DIR] ray ADDRESS [option of "ray start"...]
#   scripts/join_cluster.sh [--env DIR] vllm [--args FILE] [option of "vllm serve"...]
#
#   --env DIR    the packed environment, the same as the head's (default: model_repository/vllm/vllm_env;
#                unpack an archive into a folder first)
#   ray ADDRESS  join the Ray cluster at HOST:PORT; with --head in place of ADDRESS, start it
#   vllm         run the workers or data-parallel engines of this machine, without a front end
#   --args FILE  use the arguments of the head's vllm_engine_args.json; the options that follow are
#                those that differ here, such as --node-rank 1 or --data-parallel-start-rank 1
#
# Writes nothing. Replaces itself by "ray start --block" or "vllm serve --headless", which stays in the
# foreground. Let a supervisor start it again when it ends. See docs/multi-node.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local env="$ROOT/model_repository/vllm/vllm_env"
    case "${1:-}" in -h | --help) usage; exit 0 ;; esac
    if [ "${1:-}" = --env ]; then
        env="${2:?--env needs a folder}"
        shift 2
    fi
    # The folder behind the link vllm_env: a running process keeps it when another one is built.
    env="$(realpath --canonicalize-missing "$env")"
    PYTHON="$env/bin/python"
    [ -x "$PYTHON" ] || err "no execution environment in $env: gen_vllm_env.sh --format dir makes one"
    # As Triton's Python backend does, so that programs find the environment's programs and libraries.
    export PATH="$env/bin:$PATH" LD_LIBRARY_PATH="$env/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    case "${1:-}" in
        ray) shift; join_ray "$@" ;;
        vllm) shift; join_vllm "$@" ;;
        *) err "the first argument must be ray or vllm, got '${1:-}'" ;;
    esac
}

join_ray() {
    local where="${1:?ray needs the address of the head, or --head}"
    shift
    "$PYTHON" -c 'import ray' 2>/dev/null ||
        err "the environment has no Ray: $PYTHON -m pip install ray, and the same for the head"
    [ "$where" = --head ] || where="--address=$where"
    exec "$PYTHON" -m ray.scripts.scripts start "$where" --block --disable-usage-stats "$@"
}

join_vllm() {
    local arguments=()
    if [ "${1:-}" = --args ]; then
        arguments_of "${2:?--args needs a file}"
        shift 2
    fi
    # Not bin/vllm, whose first line has the path at which the environment was made.
    exec "$PYTHON" -m vllm.entrypoints.cli.main serve ${arguments[@]+"${arguments[@]}"} --headless "$@"
}

# arguments_of FILE: fill the array "arguments" with the options of vLLM's command line for FILE.
arguments_of() {
    local text
    text="$(PYTHONPATH="$ROOT/model_repository/vllm/1${PYTHONPATH:+:$PYTHONPATH}" \
        "$PYTHON" -m triton_vllm.vllm_api.arguments "$1")" || exit 1
    mapfile -t arguments <<<"$text"
}

main "$@"

#!/usr/bin/env bash
# Install this repository's model as Triton's backend "vllm", in place of Triton's own. Triton then
# serves the model folders of that backend (backend: "vllm" in config.pbtxt, 1/model.json) with it.
#
#   scripts/install_backend.sh [--env ENVIRONMENT] [BACKENDS]
#
#   BACKENDS           Triton's folder of backends, default /opt/tritonserver/backends
#   --env ENVIRONMENT  the execution environment that gen_vllm_env.sh made, vllm_env.tar.gz or the
#                      folder vllm_env; without it, models use the Python of Triton's stub
#
# Writes BACKENDS/vllm: model.py, the package triton_vllm and a link to the environment. An existing
# backend "vllm" is kept as BACKENDS/vllm.before. A second run updates the installed files. Takes a
# second. EXECUTION_ENV_PATH in a model's config.pbtxt overrides ENVIRONMENT.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SOURCE=$ROOT/model_repository/vllm/1
# The name under which Triton looks for the environment of a backend written in Python. It may also be
# a folder.
ENVIRONMENT_NAME=pb_exec_env_model.py.tar.gz

main() {
    local backends=/opt/tritonserver/backends environment="" target
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --env) environment="${2:-}"; [ -n "$environment" ] || err "--env wants a path"; shift ;;
            -*) err "unknown option $1: see --help" ;;
            *) backends="$1" ;;
        esac
        shift
    done
    [ -d "$backends/python" ] ||
        err "$backends/python is missing: BACKENDS must be the folder with Triton's Python backend"
    if [ -n "$environment" ]; then
        [ -f "$environment" ] || [ -f "$environment/bin/activate" ] ||
            err "$environment is neither an archive nor an environment: make one with gen_vllm_env.sh"
        # Not the folder behind a link: gen_vllm_env.sh changes the link when it builds again.
        environment="$(realpath --no-symlinks "$environment")"
    fi

    target=$backends/vllm
    rm -rf "$target.new"
    mkdir "$target.new" || err "cannot write to $backends: run this as its owner"
    cp "$SOURCE/model.py" "$target.new"
    cp -R "$SOURCE/triton_vllm" "$target.new"
    find "$target.new" -name __pycache__ -type d -prune -exec rm -rf {} +
    [ -z "$environment" ] || ln -s "$environment" "$target.new/$ENVIRONMENT_NAME"
    if [ -e "$target" ] && ! [ -d "$target/triton_vllm" ]; then
        [ ! -e "$target.before" ] || err "$target.before is there, and so is another $target: move one of them away"
        mv "$target" "$target.before"
        say "$target is kept as $target.before"
    fi
    rm -rf "$target"
    mv "$target.new" "$target"
    say "$target${environment:+, on $environment}"
}

main "$@"

#!/usr/bin/env bash
# Build the Dockerfile for the CPU without docker, run the server from the image, and query it.
#
#   scripts/build_image.sh [--install-tools] [--clean]
#
#   --install-tools  first install buildah and debootstrap with apt-get
#   --clean          remove all that an earlier run left, and build nothing
#
# Needs Linux on x86_64, root, buildah and debootstrap, and what scripts/demo.sh needs. In place of
# NVIDIA's base image the script makes a Debian 12, with the Triton of the package nvidia-pytriton in
# /opt/tritonserver. The environment's Python comes from conda-forge, or, if that does not answer, from
# a Python of this machine, which must then also run with Debian 12's glibc. The script runs the image's
# own command, user and health check, in a network of their own.
#
# pip in the build gets this machine's pip settings, and access to the local folders that they name.
#   DEBIAN_MIRROR       where debootstrap gets Debian; default: its own choice
#   BUILD_VOLUMES       further folders for the build, as "/from:/to:ro /from:/to:ro"
#   TRITON_VLLM_CACHE   the folder to use in place of .cache
#
# Writes .cache/image, with 14 GB during the build and 4 GB afterwards, and what scripts/get_triton.sh
# and scripts/get_smollm2.sh write. Takes about 10 minutes on two cores. Leaves no process.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SUITE=bookworm
# What NVIDIA's image has too: curl and pip for the Dockerfile, libnuma for vLLM on a CPU.
PACKAGES=ca-certificates,curl,libgomp1,libnuma1,libstdc++6,python3,python3-pip,zlib1g
FREE_MB=20000
BUILD_SECONDS=2400
START_SECONDS=300
SHM_SIZE=1g     # as the Dockerfile advises; docker's own 64 MB are too few for vLLM
STOP_SECONDS=45 # Triton's own limit is 30

STATE=$CACHE/image
BASE=localhost/triton-stand-in:latest
IMAGE=localhost/triton-vllm:cpu
STUB=$CACHE/triton/pytriton/tritonserver/backends/python/triton_python_backend_stub
CHECKPOINT=$CACHE/models/SmolLM2-135M-Instruct
TRITON_URL=http://127.0.0.1:8000

child='' # the isolated command under way
times=()

main() {
    parse_flags "$@"
    check_machine
    take_state
    need_free_mb "$STATE" "$FREE_MB"
    configure_buildah
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    phase Triton "$ROOT/scripts/get_triton.sh"
    phase "the stand-in base image" make_base
    phase "the conda channel" choose_channel
    phase "the image" build_image
    phase "the model" make_checkpoint
    phase "the server" serve_and_ask
    printf '%s\n' "" "seconds  step" "${times[@]}" "image: $(image_size), disk: $(du -sh "$STATE" | cut -f1) in $STATE" \
        "PASS: the image serves a model"
}

parse_flags() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --install-tools) need_root; install_tools ;;
            --clean) need_root; clean; exit 0 ;;
            *) err "unknown flag $1: see --help" ;;
        esac
        shift
    done
}

need_root() { [ "$(id -u)" = 0 ] || err "needs root, to make a Debian and to enter it: run it with sudo"; }

install_tools() {
    apt-get update -qq >&2 || err "apt-get cannot reach its package lists, its reason is above"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends buildah debootstrap >&2 ||
        err "apt-get cannot install buildah and debootstrap, its reason is above"
}

take_state() {
    mkdir -p "$STATE/tmp" 2>/dev/null || err "cannot write to $CACHE: set TRITON_VLLM_CACHE to a folder of yours"
    exec 8>"$STATE/lock"
    flock -n 8 || err "another scripts/build_image.sh works in $CACHE: wait until it is done"
}

clean() {
    take_state
    # rm would follow a mount into the machine's own folders
    ! grep -qF " $STATE/" /proc/self/mountinfo || err "something is still mounted in $STATE: unmount it first"
    rm -rf "$STATE"
    say "removed $STATE"
}

check_machine() {
    need_root
    need_python
    need_cmd buildah "it, or run this with --install-tools"
    need_cmd debootstrap "it, or run this with --install-tools"
    need_cmd flock util-linux
    need_cmd ip iproute2
    need_cmd pgrep procps
    need_cmd curl
    unshare --pid --fork --mount-proc --net true 2>/dev/null ||
        err "cannot make a process and a network namespace here: run it on the machine itself, or in a privileged container"
}

# phase NAME COMMAND...: run it, and remember how long it took.
phase() {
    local name="$1" from=$SECONDS
    shift
    say "[$SECONDS s] $name"
    "$@" >&2
    times+=("$(printf '%7d  %s' $((SECONDS - from)) "$name")")
}

# All of buildah's state goes into our folder; chroot and vfs need no help of the kernel.
configure_buildah() {
    cat >"$STATE/storage.conf" <<EOC
[storage]
driver = "vfs"
graphroot = "$STATE/storage"
runroot = "$STATE/run"
EOC
    unset STORAGE_DRIVER STORAGE_OPTS
    export CONTAINERS_STORAGE_CONF="$STATE/storage.conf" BUILDAH_ISOLATION=chroot TMPDIR="$STATE/tmp"
    [ "$(buildah info --format '{{.store.GraphRoot}}')" = "$STATE/storage" ] ||
        err "buildah does not keep its images in $STATE/storage, its reason is above"
    buildah rm --all >/dev/null # left by a run that was killed
}

# isolated SECONDS COMMAND...: run it with a time limit in process and mount namespaces of its own:
# when it ends, or this script does, all that it started ends too. The first process is a bash, since
# that reaps orphans, as the one of docker run --init does.
isolated() {
    local code=0
    unshare --pid --fork --kill-child --mount-proc \
        bash -c 'timeout --kill-after=10 "$@"; exit $?' init "$@" 8>&- </dev/null &
    child=$!
    wait "$child" || code=$?
    child=''
    return $code
}

make_base() {
    local wanted rootfs container
    wanted="$(cat "$STUB" <(declare -f make_base) <(printf '%s\n' "$SUITE $PACKAGES") | sha256sum)"
    [ "$(cat "$STATE/base.stamp" 2>/dev/null)" != "$wanted" ] || return 0
    rm -f "$STATE/base.stamp"
    buildah rmi --all --force >/dev/null # all that was built on the old one
    container="$(buildah from scratch)"
    rootfs="$(buildah mount "$container")"
    isolated 900 debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$rootfs" \
        ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$STATE/debootstrap.log" 2>&1 ||
        err "debootstrap failed: $(tail -n 1 "$STATE/debootstrap.log") (all of it: $STATE/debootstrap.log)"
    rm -rf "$rootfs"/var/{cache/apt,lib/apt/lists}/*
    # The wheel's programs find its libraries by relative paths, and Triton is looked for in /opt.
    cp -a "$CACHE/triton" "$rootfs/opt/nvidia-pytriton"
    ln -s nvidia-pytriton/pytriton/tritonserver "$rootfs/opt/tritonserver"
    chroot "$rootfs" useradd --uid 1000 triton-server
    # As NVIDIA's: the Python backend changes the stub's mode, which only its owner may.
    chown -R 1000:1000 "$rootfs/opt/nvidia-pytriton"
    buildah umount "$container" >/dev/null
    buildah config --env PATH=/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --workingdir /opt/tritonserver "$container"
    buildah commit --quiet --format docker --rm "$container" "$BASE"
    printf '%s\n' "$wanted" >"$STATE/base.stamp"
}

# conda-forge where it answers, else a folder filled from the Python at hand: the base has only
# Debian's own Python, as NVIDIA's has only Ubuntu's, and that does not serve.
choose_channel() {
    local tools="$STATE/tools" scratch="$STATE/scratch"
    make_package_folder "$tools" tools.lock python3
    rm -rf "$scratch"
    PATH="$PATH:$tools/bin" PYTHONPATH="$tools:$ROOT/scripts" python3 - "$STUB" "$scratch" <<'EOP' || exit 1
import pathlib, sys

import conda_channel, conda_env, vllm_env

stub, scratch = map(pathlib.Path, sys.argv[1:])
try:
    conda_env.resolve_channel("auto", vllm_env.stub_minor(stub), scratch)
except conda_channel.NoInterpreterError as error:
    sys.exit(f"build_image.sh: error: {error}")
EOP
    channel=auto
    [ ! -d "$scratch/channel" ] || channel=local
}

build_image() {
    local volumes=() each
    pip_settings "$STATE/pip.conf" >"$STATE/volumes" || exit 1
    for each in $(cat "$STATE/volumes") ${BUILD_VOLUMES:-}; do
        volumes+=(--volume "$each")
    done
    if [ "$channel" = local ]; then
        volumes+=(--volume "$STATE/scratch/channel:/channel:ro")
        channel=file:///channel
    fi
    buildah rmi "$IMAGE" >/dev/null 2>&1 || true
    # Without cached layers: vfs would copy the whole tree for each instruction.
    # As docker's format: OCI's has no health check.
    isolated "$BUILD_SECONDS" buildah build --layers=false --format docker --pull-never "${volumes[@]}" \
        --build-arg BASE_IMAGE="$BASE" --build-arg DEVICE=cpu --build-arg CHANNEL="$channel" \
        --tag "$IMAGE" "$ROOT" ||
        err "the build failed or took more than $BUILD_SECONDS s, see its lines above"
}

# pip_settings FILE: write the settings that pip has here, from files and variables, as one file;
# print the volumes by which the build sees it and the local files and folders that it names.
pip_settings() {
    (umask 077 && python3 -m pip config list >"$STATE/pip.list") || err "pip config list fails, its reason is above"
    python3 - "$1" "$STATE/pip.list" <<'EOP'
import ast, os, pathlib, sys, urllib.parse

settings = pathlib.Path(sys.argv[1])
wanted = (
    "cert", "client-cert", "constraint", "default-timeout", "extra-index-url", "find-links",
    "index-url", "no-index", "proxy", "retries", "timeout", "trusted-host",
)
found = {}
for line in sorted(pathlib.Path(sys.argv[2]).read_text().splitlines(), key=lambda line: line.startswith(":env:")):
    key, _, value = line.partition("=")
    section, _, name = key.rpartition(".")
    if section in ("global", ":env:") and name in wanted:
        found[name] = ast.literal_eval(value)

paths = set()
for word in " ".join(found.values()).split():
    path = urllib.parse.unquote(word.removeprefix("file://"))
    # An index links to files beside itself.
    path = path.rstrip("/").removesuffix("/simple")
    if path.startswith("/") and os.path.exists(path):
        paths.add(path)

settings.touch(0o600)
settings.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()))
print(f"{settings}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(paths)))
EOP
}

make_checkpoint() {
    local container rootfs
    container="$(buildah from --pull-never "$IMAGE")"
    rootfs="$(buildah mount "$container")"
    echo "$container" >"$STATE/container"
    "$ROOT/scripts/get_smollm2.sh" "$CHECKPOINT"
}

serve_and_ask() {
    small_engine_args /checkpoint >"$STATE/vllm_engine_args.json"
    container="$(cat "$STATE/container")"
    image_config >"$STATE/config"
    export container STATE CHECKPOINT SHM_SIZE START_SECONDS STOP_SECONDS TRITON_URL
    export -f serve ask await_ready stop as_the_image_says strangers server_processes say err
    isolated $((START_SECONDS + STOP_SECONDS + 120)) unshare --net bash -euo pipefail -c serve "$0" ||
        err "the server from the image does not work, see above (its log: $STATE/triton.log)"
}

# The image's command in the first line, its health check in the second, its user in the third.
image_config() {
    buildah inspect --type image "$IMAGE" | python3 -c '
import json, shlex, sys

config = json.load(sys.stdin)["Docker"]["config"]
assert config["Healthcheck"]["Test"][0] == "CMD", config["Healthcheck"]
print(shlex.join(config["Cmd"]), shlex.join(config["Healthcheck"]["Test"][1:]), config["User"], sep="\n")
'
}

# In the namespaces: the server, the question, and the server's end.
serve() {
    local server user from=$SECONDS
    ip link set lo up
    mount -t tmpfs -o mode=1777,size="$SHM_SIZE" tmpfs /dev/shm
    as_the_image_says 1 >"$STATE/triton.log" 2>&1 &
    server=$!
    await_ready "$server"
    say "  ready, $((SECONDS - from)) s after its start"
    as_the_image_says 2 || err "the health check fails though the server is ready"
    say "  the image's health check: healthy"
    user="$(sed 's/:.*//;3!d' "$STATE/config")"
    [ -z "$(strangers "$user")" ] || err "not all of its processes run as user $user: $(strangers "$user")"
    say "  all of its processes run as user $user"
    ask
    stop "$server"
}

# as_the_image_says LINE: run the command in that line of the image's configuration.
as_the_image_says() {
    local command
    eval "command=($(sed "$1!d" "$STATE/config"))" # quoted by shlex
    buildah run --volume "$CHECKPOINT:/checkpoint:ro" \
        --volume "$STATE/vllm_engine_args.json:/models/vllm/vllm_engine_args.json:ro" \
        --env HF_HUB_OFFLINE=1 --env VLLM_NO_USAGE_STATS=1 "$container" -- "${command[@]}"
}

await_ready() {
    local from=$SECONDS
    until curl --fail --silent --noproxy '*' "$TRITON_URL/v2/health/ready"; do
        kill -0 "$1" 2>/dev/null || err "the server ended: $(grep . "$STATE/triton.log" | tail -n 1)"
        [ $((SECONDS - from)) -lt "$START_SECONDS" ] || err "the server is not ready after $START_SECONDS s"
        sleep 1
    done
}

# The server's processes that a user other than this one runs.
strangers() { comm -23 <(server_processes | sort) <(server_processes --uid "$1" | sort); }

# By name: the only other processes in the namespace are this shell's and buildah's.
# Where it finds none, pgrep warns that the pattern is longer than a name.
server_processes() { pgrep --list-name "$@" '^(triton|VLLM|python)' 2>/dev/null; }

ask() {
    local answer
    answer="$(curl --fail-with-body --silent --noproxy '*' --max-time 60 "$TRITON_URL/v2/models/vllm/generate" --data '{
        "text_input": "The capital of France is", "exclude_input_in_output": true,
        "sampling_parameters": "{\"max_tokens\": 4, \"temperature\": 0}" }')" || err "the request failed: $answer"
    say "  $answer"
    [[ "$answer" == *'"text_output":" Paris'* ]] || err "the answer is not Paris"
}

# Stop the server as docker does, and see that its whole process tree ends.
stop() {
    local from=$SECONDS
    kill -TERM "$(pgrep --exact tritonserver)" # in this namespace there is one
    while server_processes >/dev/null; do
        [ $((SECONDS - from)) -lt "$STOP_SECONDS" ] || err "left after $STOP_SECONDS s: $(server_processes | paste -sd ,)"
        sleep 0.5
    done
    wait "$1" || err "the server ended with status $?"
    say "  stopped, with all its processes, in $((SECONDS - from)) s"
}

image_size() { buildah images --format '{{.Size}}' "$IMAGE"; }

clean_up() {
    local code=$?
    trap '' HUP INT TERM
    [ "$code" -lt 129 ] || say "interrupted: stopping what it started"
    if [ -n "$child" ]; then
        kill -KILL "$child" 2>/dev/null || true # unshare itself, and so all in its namespaces
        wait "$child" 2>/dev/null || true
    fi
    buildah rm --all >/dev/null 2>&1 || true
}

main "$@"

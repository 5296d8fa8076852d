#!/usr/bin/env bash
# Load a server with all kinds of requests and faults at once for N minutes, and check each text.
#
#   scripts/soak.sh [--minutes N]
#
# Starts its own server, with what scripts/test.sh has installed, on loopback only, and stops by
# itself. Prints a table of memory and descriptors over time, then the counts; exit code 1 if a check
# failed.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.soak "$@"

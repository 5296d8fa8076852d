#!/usr/bin/env bash
# Soak a server of our own: everything at once, faults included, each text checked, for N minutes.
#
#   scripts/soak.sh [--minutes N]
#
# Needs what scripts/test.sh has put in place. Talks to loopback only, and stops by itself. Prints a
# table of memory and descriptors over time, then the counts; exit code 1 if anything was wrong.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.soak "$@"

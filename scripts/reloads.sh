#!/usr/bin/env bash
# Unload and load a model under traffic, N times: what the server holds must not grow.
#
#   scripts/reloads.sh [--times N]
#
# Needs what scripts/test.sh has put in place. Talks to loopback only, and stops by itself. Prints
# what the server holds after each; exit code 1 if anything was wrong. 30 to 60 seconds each time.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.reloads "$@"

#!/usr/bin/env bash
# Unload and load a model under traffic, N times: memory and descriptors must not grow.
#
#   scripts/reloads.sh [--times N]
#
# Starts its own server, with what scripts/test.sh has installed, on loopback only, and stops by
# itself. Prints memory and descriptors after each load; exit code 1 if a check failed. Each load
# takes 30 to 60 seconds.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.reloads "$@"

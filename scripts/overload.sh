#!/usr/bin/env bash
# Send a server four times as many requests at once as it admits, and check each answer.
#
#   scripts/overload.sh [--requests N]
#
# Starts its own server, with what scripts/test.sh has installed, on loopback only, and stops by
# itself. Prints how the requests ended, and the server's memory and descriptors; exit code 1 if a
# check failed.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.overload "$@"

#!/usr/bin/env bash
# Flood a server of our own with four times what it admits: each request is answered or refused.
#
#   scripts/overload.sh [--requests N]
#
# Needs what scripts/test.sh has put in place. Talks to loopback only, and stops by itself. Prints
# how the requests ended, and what the server held; exit code 1 if anything was wrong.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

run_with_triton tests.load.overload "$@"

#!/usr/bin/env bash
# Get Prometheus and promtool, for the tests of deploy/monitoring, from Debian's package.
#
#   scripts/get_prometheus.sh
#
# Needs apt-get and dpkg (Debian, Ubuntu), but not root: the package is unpacked, not installed.
# Writes .cache/prometheus (TRITON_VLLM_CACHE moves .cache), 95 MB, within seconds. A second run
# does nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -eq 0 ] || { usage; [ "$1" = -h ] || [ "$1" = --help ] || exit 2; exit 0; }
debian_program "$CACHE/prometheus" usr/bin/promtool --version prometheus

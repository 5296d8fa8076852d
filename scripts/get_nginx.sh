#!/usr/bin/env bash
# Get nginx, for the test of deploy/nginx, from Debian's package.
#
#   scripts/get_nginx.sh
#
# Needs apt-get and dpkg (Debian, Ubuntu), but not root: the package is unpacked, not installed.
# Writes .cache/nginx (TRITON_VLLM_CACHE moves .cache), 2 MB, within seconds. A second run does
# nothing.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -eq 0 ] || { usage; [ "$1" = -h ] || [ "$1" = --help ] || exit 2; exit 0; }
# Older releases have the program in nginx-core, and in nginx nothing but a name.
debian_program "$CACHE/nginx" usr/sbin/nginx -v nginx nginx-core

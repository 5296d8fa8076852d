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

TARGET=$CACHE/prometheus

main() {
    [ $# -eq 0 ] || { usage; [ "$1" = -h ] || [ "$1" = --help ] || exit 2; exit 0; }
    if "$TARGET/usr/bin/promtool" --version >/dev/null 2>&1; then
        say "$TARGET: there already"
        return
    fi
    need_cmd apt-get
    need_cmd dpkg
    rm -rf "$TARGET.new"
    mkdir -p "$TARGET.new"
    cd "$TARGET.new"
    download || { [ "$(id -u)" = 0 ] && apt-get update -q >&2 && download; } ||
        err "apt-get cannot download prometheus, its reason is above: run apt-get update as root, then this again"
    dpkg -x prometheus_*.deb .
    rm prometheus_*.deb
    usr/bin/prometheus --version >/dev/null 2>&1 || err "the unpacked $TARGET.new/usr/bin/prometheus does not run"
    rm -rf "$TARGET"
    mv "$TARGET.new" "$TARGET"
    say "$TARGET: $("$TARGET/usr/bin/prometheus" --version 2>&1 | head -n 1)"
}

# As the user who asks: the folder need not be readable for apt's own.
download() { apt-get download -q -o APT::Sandbox::User="$(id -un)" prometheus >&2; }

main "$@"

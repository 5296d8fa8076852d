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

TARGET=$CACHE/nginx

main() {
    [ $# -eq 0 ] || { usage; [ "$1" = -h ] || [ "$1" = --help ] || exit 2; exit 0; }
    if "$TARGET/usr/sbin/nginx" -v >/dev/null 2>&1; then
        say "$TARGET: there already"
        return
    fi
    need_cmd apt-get
    need_cmd dpkg
    rm -rf "$TARGET.new"
    mkdir -p "$TARGET.new"
    cd "$TARGET.new"
    download || { [ "$(id -u)" = 0 ] && apt-get update -q >&2 && download; } ||
        err "apt-get cannot download nginx, its reason is above: run apt-get update as root, then this again"
    for package in *.deb; do
        dpkg -x "$package" .
        rm "$package"
    done
    usr/sbin/nginx -v >/dev/null 2>&1 || err "the unpacked $TARGET.new/usr/sbin/nginx does not run: $(usr/sbin/nginx -v 2>&1)"
    rm -rf "$TARGET"
    mv "$TARGET.new" "$TARGET"
    say "$TARGET: $("$TARGET/usr/sbin/nginx" -v 2>&1)"
}

# As the user who asks: the folder need not be readable for apt's own. Older releases have the
# program in nginx-core, and in nginx nothing but a name.
download() {
    apt-get download -q -o APT::Sandbox::User="$(id -un)" nginx >&2
    apt-get download -q -o APT::Sandbox::User="$(id -un)" nginx-core >/dev/null 2>&1 || true
}

main "$@"

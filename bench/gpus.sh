#!/usr/bin/env bash
# Measure one model on one GPU and on two: tensor parallel, data parallel, two engines, each against
# `vllm serve` with the same arguments.
#
#   bench/gpus.sh OUT [option of compare.py...]
#
# Two comparisons, each with servers that are up at the same time, so that of a model like Llama-8B
# both fit two GPUs of 140 GB; with --one-at-a-time, two of 80 GB. About five minutes on H200s; the
# options are for both: --model, --triton, --python, --execution-env, --config, --env. Writes
# OUT/tp and OUT/dp, and prints both tables. SUFFIX=-http speaks HTTP to our servers, where no gRPC
# client is installed; STREAMS_TP and STREAMS_DP are the requests under way (1,256 and 512),
# PEERS_TP and PEERS_DP other peers than those below.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ $# -gt 0 ] || { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; exit 2; }
out="$1"
shift
SUFFIX="${SUFFIX:-}"
PEERS_TP="${PEERS_TP:-vllm,ours-2$SUFFIX,vllm-tp2,ours-2-tp2$SUFFIX}"
PEERS_DP="${PEERS_DP:-vllm,ours-2$SUFFIX,vllm-dp2,ours-4-dp2$SUFFIX,ours-4-sets2$SUFFIX}"

# compare NAME PEERS STREAMS [option...]: the config first, so that a later --config wins.
compare() {
    local name="$1" peers="$2" streams="$3"
    shift 3
    python3 "$here/compare.py" --config "$here/configs/llama-8b-gpus.json" --repeats 1 \
        --processes 8 "$@" --peers "$peers" --streams "$streams" --out "$out/$name"
}

failed=0
compare tp "$PEERS_TP" "${STREAMS_TP:-1,256}" "$@" || failed=1
compare dp "$PEERS_DP" "${STREAMS_DP:-512}" "$@" || failed=1
exit "$failed"

#!/usr/bin/env bash
# Measure one model on one GPU and on two: tensor parallel, data parallel, two engines, each against
# `vllm serve` with the same arguments.
#
#   bench/gpus.sh OUT [option of compare.py...]
#
# Three comparisons, each with servers that are up at the same time, idle but for one; those on one
# GPU have one each. So a model like Llama-8B fits two GPUs of 80 GB:
#   tp    the same load on one GPU and, tensor parallel, on two; about 65 GB a GPU
#   dp    256 streams on one GPU and 512 on two, data parallel; prompts of 64 tokens, not 128, whose
#         KV cache is small enough for three servers: about 77 GB a GPU
#   sets  the same, with two engines of one Triton
#   moe   only where COMPARISONS names it: a mixture of experts, such as OLMoE-1B-7B, over two GPUs
#         with its experts divided (tensor and data parallel), and pipeline parallel; --model is its
# About six minutes on two H100, not more than LIMIT_SECONDS (480): then it ends what runs, and tells
# what was measured. The options are for all: --model, --triton, --python, --execution-env, --env,
# --config, --repeats. Writes OUT/tp, OUT/dp, OUT/sets and OUT/moe, and prints their tables. Variables:
# COMPARISONS ("tp dp sets"); SUFFIX=-http speaks HTTP to our servers, where no gRPC client is
# installed; STREAMS_TP (1,256), STREAMS_DP (256, for each GPU) and STREAMS_MOE (64) are the requests
# under way; PEERS_TP, PEERS_DP, PEERS_SETS and PEERS_MOE other peers than those below.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ $# -gt 0 ] || { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; exit 2; }
out="$1"
shift
end=$((SECONDS + ${LIMIT_SECONDS:-480}))
SUFFIX="${SUFFIX:-}"
PEERS_TP="${PEERS_TP:-vllm,ours-2-gpu1$SUFFIX,vllm-tp2,ours-2-tp2$SUFFIX}"
PEERS_DP="${PEERS_DP:-vllm,ours-2-gpu1$SUFFIX,vllm-dp2,ours-4-dp2$SUFFIX}"
PEERS_SETS="${PEERS_SETS:-ours-2-gpu1$SUFFIX,vllm-dp2,ours-4-sets2$SUFFIX}"
PEERS_MOE="${PEERS_MOE:-vllm-tp2-ep,ours-2-tp2-ep$SUFFIX,vllm-dp2-ep,ours-4-dp2-ep$SUFFIX,vllm-pp2,ours-2-pp2$SUFFIX}"

# compare NAME CONFIG PEERS STREAMS [option...]: the config first, so that a later --config wins.
compare() {
    local name="$1" config="$2" peers="$3" streams="$4" left=$((end - SECONDS))
    shift 4
    if [ "$left" -lt 60 ]; then
        printf '%s: left out, the time is over\n' "$name" >&2
        return 1
    fi
    # A server is given 25 s to end.
    timeout --foreground --kill-after=60 "$left" \
        python3 "$here/compare.py" --config "$here/configs/$config.json" --repeats 2 \
        --start-seconds 180 --processes 8 "$@" --peers "$peers" --streams "$streams" --out "$out/$name"
}

failed=0
for name in ${COMPARISONS:-tp dp sets}; do
    case "$name" in
        tp) compare tp llama-8b-tp "$PEERS_TP" "${STREAMS_TP:-1,256}" "$@" ;;
        dp) compare dp llama-8b-dp "$PEERS_DP" "${STREAMS_DP:-256}" --streams-per-gpu "$@" ;;
        sets) compare sets llama-8b-dp "$PEERS_SETS" "${STREAMS_DP:-256}" --streams-per-gpu "$@" ;;
        moe) compare moe olmoe "$PEERS_MOE" "${STREAMS_MOE:-64}" "$@" ;;
        *) printf 'no such comparison: %s\n' "$name" >&2; exit 2 ;;
    esac || failed=1
done
exit "$failed"

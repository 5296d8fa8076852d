#!/usr/bin/env bash
# Measure one model on one GPU and on N: tensor parallel, data parallel, several engines, each against
# the Rust front end of `vllm serve` with the same arguments.
#
#   bench/gpus.sh OUT [option of compare.py...]
#   GPUS=8 DRY_RUN=1 bench/gpus.sh OUT --model MODEL      prints the commands
#
# Each comparison has servers that are up at the same time, idle but for one; those on one GPU have one
# each. With Llama-8B's shape:
#   tp      the same load on one GPU and, tensor parallel, on N; about 65 GB a GPU with N=2
#   dp      256 streams for each GPU, data parallel; prompts of 64 tokens, not 128, whose KV cache is
#           small enough for three servers: about 77 GB a GPU
#   sets    the same, with N engines of one Triton
#   tpsets  two engines, tensor parallel on N/2 GPUs each, for an even N of 4 or more; the load of tp.
#           `vllm serve` has two data-parallel ranks instead
#   moe     only where COMPARISONS names it: a mixture of experts, such as OLMoE-1B-7B, with its
#           experts divided (tensor and data parallel), and pipeline parallel; --model is its
#   70b     only where COMPARISONS names it: random weights of Llama-70B's shape, tensor parallel on 4
#           or 8 GPUs. --model is a Llama's folder, whose config.json gets the shape. In bfloat16 it
#           has 70.6 billion weights x 2 bytes = 141 GB, and a token takes 80 layers x 8 KV heads x 128
#           x 2 (keys, values) x 2 bytes = 328 kB. A server's share of one GPU of eight: 17.6 GB of
#           weights, 5.6 GB of KV cache (256 requests of 256 tokens need 2.7 GB; 5.4 GB with four GPUs)
#           and about 4 GB for CUDA, NCCL and graphs; of two servers 55 GB, with four GPUs 90 GB
# Tensor parallelism wants an N that divides the model's heads. Three comparisons took six minutes on two
# H100. After LIMIT_SECONDS (480) it ends what runs, and tells what was measured. The options are for
# all: --model, --triton, --python, --execution-env, --env, --config, --repeats. Writes OUT/tp, OUT/dp
# and so on, and prints their tables. Variables: GPUS, N (as many as can be seen here); COMPARISONS ("tp
# dp sets", and tpsets where it is possible); DRY_RUN=1; SUFFIX=-http speaks HTTP to our servers, where
# no gRPC client is installed; STREAMS_TP (1,256), STREAMS_DP (256, for each GPU), STREAMS_TPSETS (256),
# STREAMS_MOE (64) and STREAMS_70B (1,256) are the requests under way; PEERS_TP, PEERS_DP, PEERS_SETS,
# PEERS_TPSETS, PEERS_MOE and PEERS_70B other peers than those below.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[ $# -gt 0 ] || { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; exit 2; }

# visible_gpus [option...]: how many GPUs the servers will see; 0 where that cannot be found out.
visible_gpus() {
    local python=python3
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi -L | grep -c '^GPU ' || true
    else
        while [ $# -gt 0 ]; do
            case "$1" in
                --python) python="${2:-}" ;;
                --python=*) python="${1#*=}" ;;
            esac
            shift
        done
        "$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || echo 0
    fi
}

out="$1"
shift
end=$((SECONDS + ${LIMIT_SECONDS:-480}))
SUFFIX="${SUFFIX:-}"
n="${GPUS:-$(visible_gpus "$@")}"
[[ "$n" =~ ^[0-9]+$ ]] && [ "$n" -ge 2 ] ||
    { printf 'needs two GPUs or more, has: %s; GPUS says how many to use\n' "$n" >&2; exit 2; }
half=$((n / 2)) all=$((4 * n))  # front ends: four for each GPU, or for each engine that is tensor parallel
one="vllm-rust,ours-4-gpu1$SUFFIX"
PEERS_TP="${PEERS_TP:-$one,vllm-rust-tp$n,ours-4-tp$n$SUFFIX}"
PEERS_DP="${PEERS_DP:-$one,vllm-rust-dp$n,ours-$all-dp$n$SUFFIX}"
PEERS_SETS="${PEERS_SETS:-$one,vllm-rust-dp$n,ours-$all-sets$n$SUFFIX}"
PEERS_TPSETS="${PEERS_TPSETS:-$one,vllm-rust-tp$half-dp2,ours-8-tp$half-sets2$SUFFIX}"
PEERS_MOE="${PEERS_MOE:-$one,vllm-rust-tp$n-ep,ours-4-tp$n-ep$SUFFIX,vllm-rust-dp$n-ep,ours-$all-dp$n-ep$SUFFIX,vllm-rust-pp$n,ours-4-pp$n$SUFFIX}"
PEERS_70B="${PEERS_70B:-vllm-rust-tp$n,ours-4-tp$n$SUFFIX}"
has_tpsets=$((n >= 4 && n % 2 == 0))
[ "$has_tpsets" = 0 ] || tpsets=tpsets

# compare NAME CONFIG PEERS STREAMS [option...]: the config first, so that a later --config wins.
compare() {
    local name="$1" config="$2" peers="$3" streams="$4" left=$((end - SECONDS))
    shift 4
    set -- python3 "$here/compare.py" --config "$here/configs/$config.json" --repeats 2 \
        --start-seconds 240 --processes $((n > 4 ? 2 * n : 8)) "$@" \
        --peers "$peers" --streams "$streams" --out "$out/$name"
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$@"
        echo
    elif [ "$left" -lt 60 ]; then
        printf '%s: left out, the time is over\n' "$name" >&2
        return 1
    else
        timeout --foreground --kill-after=60 "$left" "$@"  # a server is given 25 s to end
    fi
}

failed=0
for name in ${COMPARISONS:-tp dp sets ${tpsets:-}}; do
    case "$name$has_tpsets" in
        tp?) compare tp llama-8b-tp "$PEERS_TP" "${STREAMS_TP:-1,256}" "$@" ;;
        dp?) compare dp llama-8b-dp "$PEERS_DP" "${STREAMS_DP:-256}" --streams-per-gpu "$@" ;;
        sets?) compare sets llama-8b-dp "$PEERS_SETS" "${STREAMS_DP:-256}" --streams-per-gpu "$@" ;;
        tpsets1) compare tpsets llama-8b-tp "$PEERS_TPSETS" "${STREAMS_TPSETS:-256}" "$@" ;;
        tpsets0) printf 'tpsets needs an even number of GPUs, four or more: %s\n' "$n" >&2; exit 2 ;;
        moe?) compare moe olmoe "$PEERS_MOE" "${STREAMS_MOE:-64}" "$@" ;;
        70b?) compare 70b llama-70b-tp "$PEERS_70B" "${STREAMS_70B:-1,256}" "$@" ;;
        *) printf 'no such comparison: %s\n' "$name" >&2; exit 2 ;;
    esac || failed=1
done
exit "$failed"

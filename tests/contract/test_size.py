"""scripts/size.py against what vLLM's engine says of its KV cache when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vllm
from transformers import DeepseekV2Config, Gemma3TextConfig, LlamaConfig

ROOT = Path(__file__).parents[2]
KV_BYTES = 64 << 20
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 512,
    "dtype": "float32",
}

# One of each kind of KV cache that is computed.
MODELS: dict[str, tuple[str, Any]] = {
    "grouped queries": (
        "LlamaForCausalLM",
        LlamaConfig(
            **SMALL,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
        ),
    ),
    "sliding window and full attention": (
        "Gemma3ForCausalLM",
        Gemma3TextConfig(
            **SMALL,
            num_hidden_layers=7,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            sliding_window=512,
            max_position_embeddings=8192,
        ),
    ),
    "latent (MLA)": (
        "DeepseekV2ForCausalLM",
        DeepseekV2Config(
            **SMALL,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            kv_lora_rank=512,
            q_lora_rank=None,
            qk_rope_head_dim=64,
            qk_nope_head_dim=128,
            v_head_dim=128,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
            first_k_dense_replace=2,
            max_position_embeddings=4096,
        ),
    ),
}


def last_json(command: list[str], **variables: str) -> dict[str, Any]:
    """Run a program; return the JSON object with which its output ends."""
    environment = os.environ | variables
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert 0 == done.returncode, done.stdout[-2000:] + done.stderr[-4000:]
    start = done.stdout.rindex("\n{") + 1 if "\n{" in done.stdout else 0
    read: dict[str, Any] = json.loads(done.stdout[start:])
    return read


# Another vLLM over the packages of the environment: its kernels want a torch of their own.
OWN = Path(vllm.__file__).is_relative_to(sys.prefix)


@pytest.mark.skipif(not OWN, reason="this vLLM's kernels are for another torch: no engine starts")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name == "sliding window and full attention" else pytest.mark.slow
        )
        for name in MODELS
    ],
)
def test_the_kv_cache_is_vllms(name: str, tmp_path: Path) -> None:
    """Blocks and tokens are what the engine reports for the same bytes, to the last one."""
    architecture, config = MODELS[name]
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    arguments = {
        "model": str(tmp_path),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "kv_cache_memory_bytes": KV_BYTES,
        "max_num_seqs": 4,
    }
    # In one process: an engine core of its own would only import vLLM once more.
    said = last_json(
        ["tests/contract/report_kv_cache.py", json.dumps(arguments)],
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    computed = last_json(
        [
            "scripts/size.py",
            str(tmp_path),
            "--json",
            "--gpu=1GiB",
            "--weights=1MiB",
            "--dtype=float32",
            f"--kv-cache-memory-bytes={KV_BYTES}",
            f"--block-size={said['block_size']}",
            f"--max-num-batched-tokens={said['max_num_batched_tokens']}",
            *(["--no-async-scheduling"] if said["max_concurrent_batches"] == 1 else []),
        ]
    )
    for figure in ("num_gpu_blocks", "kv_cache_size_tokens"):
        assert said[figure] == computed[figure], figure


def test_a_name_of_the_hub_is_found_in_its_cache(tmp_path: Path) -> None:
    """Only the small files of a model that was never downloaded: the index says how large it is."""
    snapshot = tmp_path / "models--some--model/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    MODELS["grouped queries"][1].save_pretrained(snapshot)
    index = {"metadata": {"total_size": 5 << 30}, "weight_map": {}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    found = last_json(
        ["scripts/size.py", "some/model", "--json", "--gpu=80GiB", "--tp=2"],
        HF_HUB_CACHE=str(tmp_path),
        HF_HUB_OFFLINE="1",
    )
    assert (5 << 30, 5 << 29) == (found["weights"], found["weights_a_gpu"])
    left = int((80 << 30) * 0.92) - (5 << 29) - (3 << 30)
    assert left == found["kv_cache_bytes"]

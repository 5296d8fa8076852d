"""A LoRA adapter with random weights, made in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.tiny_llama import write_safetensors


def make_lora(directory: Path, base: Path, rank: int = 8) -> Path:
    """Write an adapter of random weights, large enough to change every answer of ``base``."""
    directory.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text())
    hidden = config["hidden_size"]
    head = hidden // config["num_attention_heads"]
    outputs = {"q_proj": hidden, "v_proj": head * config["num_key_value_heads"]}
    adapter = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(outputs),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    random = np.random.default_rng(0)
    weights = {}
    for number in range(config["num_hidden_layers"]):
        for name, width in outputs.items():
            prefix = f"base_model.model.model.layers.{number}.self_attn.{name}"
            for part, shape in (("A", (rank, hidden)), ("B", (width, rank))):
                values = random.standard_normal(shape).astype(np.float32) * 0.2
                weights[f"{prefix}.lora_{part}.weight"] = values
    write_safetensors(directory / "adapter_model.safetensors", weights)
    return directory

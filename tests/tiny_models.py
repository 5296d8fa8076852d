"""Models and adapters with random weights, made in a moment, for tests that need one more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]

_HIDDEN, _HEADS, _LAYERS, _VOCABULARY = 128, 2, 2, 49152  # the vocabulary is SmolLM2's


def make_tiny_llama(directory: Path, tokenizer: Path) -> Path:
    """Write a Llama of 7 million random weights that uses the tokenizer of another model."""
    directory.mkdir(parents=True)
    for file in tokenizer.iterdir():
        if file.name.startswith(
            ("tokenizer", "special_tokens", "vocab", "merges", "chat_template")
        ):
            shutil.copy(file, directory)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": 2 * _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (random.standard_normal((rows, columns)) * 0.05).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(_VOCABULARY, _HIDDEN)}
    weights["model.norm.weight"] = np.ones(_HIDDEN, np.float32)
    for number in range(_LAYERS):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{norm}.weight"] = np.ones(_HIDDEN, np.float32)
        for part in "qkvo":
            weights[f"{layer}.self_attn.{part}_proj.weight"] = matrix(_HIDDEN, _HIDDEN)
        for part in ("gate", "up"):
            weights[f"{layer}.mlp.{part}_proj.weight"] = matrix(2 * _HIDDEN, _HIDDEN)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(_HIDDEN, 2 * _HIDDEN)
    write_safetensors(directory / "model.safetensors", weights)
    return directory


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


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write float32 weights: the header's length, the header as JSON, the weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in weights.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for value in weights.values():
            file.write(value.tobytes())

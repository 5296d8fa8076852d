"""A Llama of two layers with random weights and SmolLM2's tokenizer: starts in seconds.

Its text makes no sense, but it is the same each time: in float32 no two logits are near enough for
a batch's rounding to swap them, so a greedy text is the truth that a test can compare with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_LAYERS = 2
HIDDEN = 64
_INTERMEDIATE = 128
_HEADS = 2
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "*.jinja")


def make_tiny_llama(directory: Path, tokenizer: Path, context: int = 2048) -> Path:
    """Write the checkpoint into ``directory``, the tokenizer taken from another; return it."""
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in _TOKENIZER_FILES:
        for file in tokenizer.glob(pattern):
            shutil.copy(file, directory)
    config = json.loads((tokenizer / "config.json").read_text())
    config |= {
        "num_hidden_layers": _LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": HIDDEN // _HEADS,
        "max_position_embeddings": context,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    write_safetensors(directory / "model.safetensors", _weights(config["vocab_size"]))
    return directory


def _weights(vocabulary: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed=7)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        return np.asarray(random.standard_normal((rows, columns)) / columns**0.5, np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(vocabulary, HIDDEN) * 8,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}."
        for projection in ("q", "k", "v", "o"):
            weights[f"{name}self_attn.{projection}_proj.weight"] = matrix(HIDDEN, HIDDEN)
        weights[name + "mlp.gate_proj.weight"] = matrix(_INTERMEDIATE, HIDDEN)
        weights[name + "mlp.up_proj.weight"] = matrix(_INTERMEDIATE, HIDDEN)
        weights[name + "mlp.down_proj.weight"] = matrix(HIDDEN, _INTERMEDIATE)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{name}{norm}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write float32 tensors: the header's length in 8 bytes, the header in JSON, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())

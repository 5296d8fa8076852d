"""scripts/size.py: figures that are known of well-known models; contract tests ask vLLM itself."""

from __future__ import annotations

import argparse
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import size
from kv_cache import FULL, SLIDING, KVCache, Plan, Shape, UnknownError
from tests.e2e.model_folder import ROOT

GIB = 1 << 30


def shape(*layers: str, **changed: Any) -> Shape:
    """Return a shape, Llama-3.1-8B's where nothing is changed."""
    fields: dict[str, Any] = {
        "layers": layers or (FULL,) * 32,
        "kv_heads": 8,
        "key_size": 128,
        "value_size": 128,
        "window": 0,
        "max_length": 131072,
        "dtype": "bfloat16",
    }
    return Shape(**(fields | changed))


DEEPSEEK_V3 = shape(*[FULL] * 61, kv_heads=1, key_size=576, value_size=0, latent=True)


def bytes_a_token(model: Shape, **plan: Any) -> float:
    """Return what a token of context costs on one GPU."""
    cache = KVCache.of(model, Plan(**plan))
    return cache.bytes_a_block * cache.full_groups / cache.block_size


@pytest.mark.parametrize(
    ("model", "plan", "expected"),
    [
        (shape(), {}, 128 * 1024),
        (shape(), {"tensor_parallel_size": 8}, 16 * 1024),
        (shape(), {"tensor_parallel_size": 16}, 16 * 1024),  # each of 8 heads on two GPUs
        (shape(), {"kv_cache_dtype": "fp8"}, 64 * 1024),
        (shape(), {"pipeline_parallel_size": 2}, 64 * 1024),
        (shape(), {"pipeline_parallel_size": 3}, 11 * 4096),  # of 10, 11 and 11 layers
        (DEEPSEEK_V3, {}, 61 * 576 * 2),
        (DEEPSEEK_V3, {"tensor_parallel_size": 8}, 61 * 576 * 2),  # whole on each GPU
    ],
    ids=["8B", "TP 8", "TP 16", "fp8", "PP 2", "PP 3", "MLA", "MLA, TP 8"],
)
def test_bytes_of_a_token(model: Shape, plan: dict[str, Any], expected: int) -> None:
    """2 (keys and values) x layers x heads x size x bytes, on each GPU."""
    assert expected == bytes_a_token(model, **plan)


def test_a_window_holds_no_more_than_itself_and_what_is_in_flight() -> None:
    """12 full and 12 sliding layers (gpt-oss-20b's): two groups, one of which does not grow."""
    cache = KVCache.of(
        shape(*[SLIDING, FULL] * 12, window=128, kv_heads=8, key_size=64, value_size=64),
        Plan(max_num_batched_tokens=1024, async_scheduling=False),
    )
    assert (1, 1, 12 * 16 * 8 * 128 * 2) == (
        cache.full_groups,
        cache.sliding_groups,
        cache.bytes_a_block,
    )
    window = (128 - 1 + 1024 + 15) // 16 + 1
    assert [8192 // 16 + window, 131072 // 16 + window] == [
        cache.blocks_of(8192),
        cache.blocks_of(131072),
    ]


def test_the_longest_length_is_the_last_that_fits() -> None:
    """One token more would not fit so many requests."""
    cache = KVCache.of(shape(), Plan())
    longest = cache.longest(40 * GIB, 64, 131072)
    assert cache.requests(40 * GIB, longest) >= 64 > cache.requests(40 * GIB, longest + 1)
    assert (131072, 0) == (cache.longest(40 * GIB, 1, 131072), cache.longest(1, 1, 131072))


def config(**fields: Any) -> Any:
    """Return a configuration as transformers has it."""
    known = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}
    text = SimpleNamespace(**({"max_position_embeddings": 64} | known | fields))
    return SimpleNamespace(get_text_config=lambda: text)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mamba_d_state": 16}, "state layers"),
        ({"index_topk": 2048}, "sparse attention"),
        ({"layer_types": [FULL, "chunked_attention"]}, "layers of type chunked_attention"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_not_computed_is_said(fields: dict[str, Any], why: str) -> None:
    """A wrong figure would be worse than none."""
    with pytest.raises(UnknownError, match=why):
        Shape.of(config(**fields))


def test_a_configuration_is_read() -> None:
    """Heads and sizes have defaults; a window counts where the model uses it."""
    assert (4, 16, 16) == (
        (plain := Shape.of(config())).kv_heads,
        plain.key_size,
        plain.value_size,
    )
    assert (SLIDING, SLIDING) == Shape.of(config(sliding_window=8)).layers
    assert (FULL, FULL) == Shape.of(config(sliding_window=8, use_sliding_window=False)).layers
    latent = Shape.of(config(kv_lora_rank=512, qk_rope_head_dim=64))
    assert (1, 576, 0, True) == (
        latent.kv_heads,
        latent.key_size,
        latent.value_size,
        latent.latent,
    )


def test_weights_are_counted_as_they_will_be_loaded(tmp_path: Path) -> None:
    """Floats in the dtype that is asked for, quantized weights as they are stored."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
        "b": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [32, 40]},
    }
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(40))
    assert [24, 40] == [size.weight_bytes(tmp_path, d) for d in ("bfloat16", "float32")]
    file.unlink()
    index = {"metadata": {"total_size": 1234}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert 1234 == size.weight_bytes(tmp_path, "bfloat16")


@pytest.mark.parametrize(
    ("text", "expected"), [("80GiB", 80 << 30), ("1.5 GB", 1_500_000_000), ("512mib", 512 << 20)]
)
def test_sizes_have_units(text: str, expected: int) -> None:
    """GiB is not GB."""
    assert expected == size.parse_size(text)


def test_a_size_of_another_unit_is_refused() -> None:
    """With what is allowed."""
    with pytest.raises(argparse.ArgumentTypeError, match="such as 80GiB"):
        size.parse_size("80 gigs")


def test_the_options_are_documented() -> None:
    """docs/scaling.md names each option; the help works without transformers."""
    command = [sys.executable, str(ROOT / "scripts/size.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    options = set(re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE))
    text = (ROOT / "docs/scaling.md").read_text()
    rows = re.findall(r"^\| (`--.*?) \| ", text, re.MULTILINE)
    named = {option for row in rows for option in re.findall(r"`(--[a-z-]+)`", row)}
    assert options == named

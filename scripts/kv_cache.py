"""How vLLM divides a model's KV cache into blocks: the arithmetic of size.py.

vLLM's own classes for it need torch, a device and an engine's whole configuration; a contract test
compares these with what the engine says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
KV_BYTES = {**DTYPE_BYTES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
FULL, SLIDING = "full_attention", "sliding_attention"
# Fields of configurations whose KV cache follows other rules than those below.
OTHER_RULES = {
    "mamba_d_state": "state layers",
    "mamba_n_heads": "state layers",
    "ssm_state_size": "state layers",
    "linear_num_key_heads": "state layers",
    "num_kv_shared_layers": "layers that share a KV cache",
    "global_head_dim": "layers of two sizes",
    "index_topk": "sparse attention",
    "compress_ratios": "sparse attention",
}


class UnknownError(Exception):
    """The KV cache of this model cannot be computed; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of a model that decide its KV cache.

    ``layers`` holds FULL or SLIDING for each layer. For a latent (MLA) model ``kv_heads`` is 1,
    ``key_size`` is the size of the latent with its rotary part, and ``value_size`` is 0: every GPU
    of a tensor-parallel group has the whole latent.
    """

    layers: tuple[str, ...]
    kv_heads: int
    key_size: int
    value_size: int
    window: int
    max_length: int
    dtype: str
    latent: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Read a configuration of transformers'. Raises UnknownError for what is not computed."""
        text = config.get_text_config()
        for name, rule in OTHER_RULES.items():
            if getattr(text, name, None):
                raise UnknownError(f"{name}: {rule}: start vLLM and read its log")
        heads = text.num_attention_heads
        latent = getattr(text, "kv_lora_rank", None)
        key = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        value = getattr(text, "v_head_dim", None) or key
        if latent:
            kv_heads, key, value = 1, latent + text.qk_rope_head_dim, 0
        return cls(
            layers=_layers(text),
            kv_heads=kv_heads,
            key_size=key,
            value_size=value,
            window=getattr(text, "sliding_window", None) or 0,
            max_length=text.max_position_embeddings,
            dtype=str(getattr(text, "dtype", None) or "float32").removeprefix("torch."),
            latent=bool(latent),
        )


def _layers(text: Any) -> tuple[str, ...]:
    number = int(text.num_hidden_layers)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        uses = getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True)
        return (SLIDING if uses else FULL,) * number
    if strange := set(kinds) - {FULL, SLIDING}:
        raise UnknownError(f"layers of type {strange.pop()}: start vLLM and read its log")
    return tuple(str(kind) for kind in kinds[:number])


@dataclass(frozen=True, slots=True)
class Plan:
    """How vLLM is to run the model, by the names of its engine arguments. Sizes in bytes."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kv_cache_dtype: str = "auto"
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    async_scheduling: bool = True

    @property
    def in_flight_tokens(self) -> int:
        """Tokens that may be scheduled and not yet settled: of one batch, two, or one a stage."""
        batches = max(2 if self.async_scheduling else 1, self.pipeline_parallel_size)
        return batches * self.max_num_batched_tokens


@dataclass(frozen=True, slots=True)
class KVCache:
    """The KV cache of one GPU, in vLLM's blocks, which all groups of layers share.

    A group has at most ``layers_a_group`` layers on a GPU, and a request's tokens take blocks in
    each group: of all its tokens in ``full_groups``, of the window's in ``sliding_groups``.
    """

    block_size: int
    bytes_a_block: int
    full_groups: int
    sliding_groups: int
    window: int
    in_flight_tokens: int

    @classmethod
    def of(cls, shape: Shape, plan: Plan) -> KVCache:
        """Group the layers as ``get_kv_cache_groups`` of vLLM's v1/core/kv_cache_utils.py does."""
        dtype = shape.dtype if plan.kv_cache_dtype == "auto" else plan.kv_cache_dtype
        shards = 1 if shape.latent else plan.tensor_parallel_size
        heads = max(1, shape.kv_heads // shards)
        page = plan.block_size * heads * (shape.key_size + shape.value_size) * KV_BYTES[dtype]
        kinds = [[n for n, kind in enumerate(shape.layers) if kind == k] for k in (FULL, SLIDING)]
        numbers = [len(kind) for kind in kinds if kind]
        size = min(numbers) if max(numbers) >= 1.5 * min(numbers) else max(numbers)
        stages = list(_stages(len(shape.layers), plan.pipeline_parallel_size))
        counts, widest = [], 0
        for kind in kinds:
            groups = math.ceil(len(kind) / size)
            counts.append(groups)
            for layers in (kind[n::groups] for n in range(groups)):
                widest = max(widest, *(len(stage.intersection(layers)) for stage in stages))
        return cls(
            block_size=plan.block_size,
            bytes_a_block=page * widest,
            full_groups=counts[0],
            sliding_groups=counts[1],
            window=shape.window,
            in_flight_tokens=plan.in_flight_tokens,
        )

    def blocks_of(self, length: int) -> int:
        """Return the blocks that a request of this length may hold at once."""
        blocks = self.full_groups * math.ceil(length / self.block_size)
        if self.sliding_groups:
            held = min(self.window - 1 + self.in_flight_tokens, length)
            blocks += self.sliding_groups * (math.ceil(held / self.block_size) + 1)
        return blocks

    def requests(self, available: int, length: int) -> float:
        """Return how many requests of this length fit into the bytes: vLLM's concurrency."""
        return (available // self.bytes_a_block) / self.blocks_of(length)

    def longest(self, available: int, requests: int, limit: int) -> int:
        """Return the longest length at which this many requests fit, 0 if none does."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.requests(available, middle) >= requests
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def _stages(layers: int, number: int) -> Iterator[set[int]]:
    """Yield the layers of each stage of a pipeline, as vLLM's ``get_pp_indices`` divides them."""
    sizes = [layers // number] * number
    for n in range(2, layers % number + 2):
        sizes[-n] += 1
    for n in range(number):
        yield set(range(sum(sizes[:n]), sum(sizes[: n + 1])))

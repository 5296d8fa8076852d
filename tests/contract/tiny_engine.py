"""Real engines of tiny models, on one thread, for tests of vLLM and the package together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.protocol.requests import Generation
from triton_vllm.vllm_api import api as vllm_api

CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", Path(__file__).resolve().parents[2] / ".cache"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
# What takes a minute and more is for scripts/test.sh --all only, as all hostile cases are.
NIGHTLY = int(os.environ.get("HOSTILE_CASES", "20000")) >= 20000


def engine_args(model: Path, **options: Any) -> Any:
    """Return the arguments of an engine for the model; ``options`` are added to these."""
    defaults = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_memory_bytes": 1 << 24}
    return vllm_api.AsyncEngineArgs(
        model=str(model), dtype="float32", enforce_eager=True, **(defaults | options)
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Have the engines that start here compute with one thread, on any core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # else vLLM 0.26 needs g++, eager as it may be
        yield


@asynccontextmanager
async def running(args: Any, config: Any) -> AsyncIterator[Any]:
    """Start an engine; end it in every case."""
    llm = vllm_api.create_engine(args, config)
    try:
        yield llm
    finally:
        vllm_api.shut_down(llm, 5)
        await asyncio.sleep(1)


async def all_outputs(generation: Generation) -> list[Any]:
    """Return all outputs of a generation in their order, those that are handed over included."""
    outputs: list[Any] = []
    async for output in generation.outputs(outputs.append):
        outputs.append(output)
    return outputs

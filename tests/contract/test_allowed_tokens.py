"""`allowed_token_ids` restrict the request that has them, and no other one in its batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.contract.tiny_engine import CHECKPOINT, engine_args, one_thread, running
from tests.tiny_llama import make_tiny_llama
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.engine_process.allowed_tokens import keep_apart

ALLOWED = [28, 30]


async def tokens(llm: Any, name: str, count: int, **parameters: Any) -> list[int]:
    """Return so many greedy tokens."""
    sampling = vllm_api.SamplingParams(
        temperature=0, max_tokens=count, ignore_eos=True, **parameters
    )
    output = None
    async for output in llm.generate("The capital of France is", sampling, name):  # noqa: B007
        pass
    assert output is not None
    return list(output.outputs[0].token_ids)


async def answers(args: Any, config: Any) -> SimpleNamespace:
    """Ask alone, then at a place in the batch that a restricted request has left."""
    async with running(args, config) as llm:
        alone = await tokens(llm, "alone", 6)
        short = asyncio.create_task(tokens(llm, "short", 20))
        await asyncio.sleep(0.05)
        restricted = asyncio.create_task(tokens(llm, "restricted", 200, allowed_token_ids=ALLOWED))
        await short  # now the restricted request moves to its place
        beside = await tokens(llm, "beside", 6)
        assert not restricted.done(), "too short to be beside"
        return SimpleNamespace(alone=alone, beside=beside, restricted=await restricted)


@pytest.mark.timeout(120)
def test_a_request_is_restricted_by_its_own_tokens_only(tmp_path: Path) -> None:
    """Also where another one was before; vLLM 0.26 to 0.30 do not see to that themselves."""
    model = make_tiny_llama(tmp_path / "tiny", CHECKPOINT)
    with one_thread():
        args = engine_args(model)
        found = asyncio.run(answers(args, vllm_api.create_config(args)))
    assert set(ALLOWED) >= set(found.restricted)
    assert not set(ALLOWED) & set(found.alone)
    assert found.alone == found.beside


class Batch:
    """As much of vLLM's as is mended, with the faults that it has."""

    def __init__(self) -> None:
        self.req_ids = ["free", "restricted"]
        self.has_allowed_token_ids = {"restricted"}
        self.allowed_token_ids_mask_cpu_tensor = torch.tensor([[False, False], [True, False]])
        self.refreshed = 0

    def swap_states(self, i1: int, i2: int) -> None:
        rows, ids = self.allowed_token_ids_mask_cpu_tensor, self.req_ids
        ids[i1], ids[i2] = ids[i2], ids[i1]
        rows[i1], rows[i2] = rows[i2], rows[i1]  # views: now both are the second

    def refresh_metadata(self) -> None:
        self.refreshed += 1


def test_swapped_requests_keep_their_rows() -> None:
    """Each its own, and the mend is done once."""
    keep_apart(Batch)
    mended = Batch.swap_states
    keep_apart(Batch)
    assert mended is Batch.swap_states
    batch = Batch()
    batch.swap_states(0, 1)
    assert [[True, False], [False, False]] == batch.allowed_token_ids_mask_cpu_tensor.tolist()


def test_a_row_that_was_left_is_cleared() -> None:
    """Before vLLM reads it."""
    keep_apart(Batch)
    batch = Batch()
    batch.allowed_token_ids_mask_cpu_tensor[0] = True
    batch.refresh_metadata()
    assert [[False, False], [True, False]] == batch.allowed_token_ids_mask_cpu_tensor.tolist()
    assert 1 == batch.refreshed

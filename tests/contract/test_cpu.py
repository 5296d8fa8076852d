"""The worker on a CPU: vLLM's, with generators that can be taken back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from tests.contract.test_requests import CONFIG
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.engine_process.cpu import RewindableGenerator, Worker, mark_generators
from triton_vllm.vllm_api.parallel import choose_worker


def draw(generator: torch.Generator) -> int:
    """Draw as vLLM's sampler does."""
    return int(torch.randint(0, 2**31, (1,), generator=generator).item())


def test_the_configuration_names_it(tmp_path: Path) -> None:
    """Where vLLM's own worker would be; another one of the operator's stays."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    how: dict[str, Any] = {"model": str(tmp_path), "skip_tokenizer_init": True}
    config = vllm_api.create_config(vllm_api.AsyncEngineArgs(**how))
    assert resolve_obj_by_qualname(config.parallel_config.worker_cls) is Worker
    theirs = f"{CPUWorker.__module__}.Other"
    config = vllm_api.create_config(vllm_api.AsyncEngineArgs(**how, worker_cls=theirs))
    assert theirs == config.parallel_config.worker_cls


def test_with_ray_the_worker_is_vllms() -> None:
    """The nodes of its cluster need not have this package."""
    theirs = f"{CPUWorker.__module__}.{CPUWorker.__name__}"
    parallel = SimpleNamespace(worker_cls=theirs, distributed_executor_backend="ray")
    choose_worker(SimpleNamespace(parallel_config=parallel))
    assert theirs == parallel.worker_cls
    parallel.distributed_executor_backend = "mp"
    choose_worker(SimpleNamespace(parallel_config=parallel))
    assert resolve_obj_by_qualname(parallel.worker_cls) is Worker


def test_a_draw_can_be_taken_back() -> None:
    """As vLLM does, by an offset."""
    plain = torch.Generator().manual_seed(3)
    batch = SimpleNamespace(generators={1: torch.Generator().manual_seed(3)}, req_ids=["a", "b"])
    request = SimpleNamespace(generator=batch.generators[1])
    runner = SimpleNamespace(input_batch=batch, requests={"b": request})
    drawn = []
    for _ in range(3):
        mark_generators(runner)
        generator = batch.generators[1]
        assert isinstance(generator, RewindableGenerator)
        assert request.generator is generator
        draw(generator)
        generator.set_offset(generator.get_offset() - 4)
        drawn.append(draw(generator))
    assert [draw(plain) for _ in range(3)] == drawn


def test_vllms_model_runner_is_as_it_was() -> None:
    """A step begins with the method that is wrapped."""
    assert hasattr(CPUModelRunner, "_update_states")

"""The schedulers that can abort all requests of vLLM's Rust front end: vLLM's, with that added."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from vllm.config import SchedulerConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.core_client import AsyncMPClient, DPLBAsyncMPClient
from vllm.v1.request import Request, RequestStatus

from triton_vllm.vllm_api.engine_process import RUST_REQUESTS
from triton_vllm.vllm_api.engine_process.scheduler import RustAsyncScheduler, RustScheduler
from triton_vllm.vllm_api.parallel import choose_scheduler
from triton_vllm.vllm_api.rust_front_end import RustFrontEnd


@pytest.mark.parametrize(
    ("asynchronous", "ours", "vllms"),
    [(True, RustAsyncScheduler, AsyncScheduler), (False, RustScheduler, Scheduler)],
)
def test_the_configuration_names_it(asynchronous: bool, ours: type, vllms: type) -> None:
    """Where vLLM's own scheduler would be; another one of the operator's stays."""
    config = SchedulerConfig.default_factory(async_scheduling=asynchronous)
    assert config.get_scheduler_cls() is vllms
    choose_scheduler(SimpleNamespace(scheduler_config=config))
    assert config.get_scheduler_cls() is ours
    assert issubclass(ours, vllms)
    config.scheduler_cls = "theirs.Scheduler"
    choose_scheduler(SimpleNamespace(scheduler_config=config))
    assert config.scheduler_cls == "theirs.Scheduler"


@pytest.mark.parametrize(
    ("asked", "finished"),
    [
        ([RUST_REQUESTS], {"a", "c"}),
        (["b", RUST_REQUESTS], {"a", "b", "c"}),
        (iter(["b"]), {"b"}),
        ("b", "b"),
        (None, None),
    ],
    ids=["all of the Rust front end", "one more", "another", "one", "all"],
)
def test_an_abort_ends_the_requests_of_the_first_client(
    monkeypatch: pytest.MonkeyPatch, asked: Any, finished: Any
) -> None:
    """As the engine core calls its scheduler for the ids of an abort."""
    assert "client_index" in inspect.signature(Request).parameters
    scheduler: Any = object.__new__(RustScheduler)
    clients = {"a": 0, "b": 1, "c": 0}
    scheduler.requests = {name: SimpleNamespace(client_index=n) for name, n in clients.items()}
    calls = []
    monkeypatch.setattr(Scheduler, "finish_requests", lambda _, *given: calls.append(given))
    core: Any = SimpleNamespace(scheduler=scheduler)
    EngineCore.abort_requests(core, asked)
    ((ids, status),) = calls
    assert status is RequestStatus.FINISHED_ABORTED
    assert finished == (ids if ids is None or isinstance(ids, str) else set(ids) - {RUST_REQUESTS})


@pytest.mark.parametrize(
    ("client", "expected"), [(AsyncMPClient, [b"0"]), (DPLBAsyncMPClient, [b"0", b"1"])]
)
def test_every_engine_core_is_asked(client: Any, expected: list[bytes]) -> None:
    """One, or each rank of data parallelism."""
    asked = []

    async def call(method: str, *args: Any, engine: bytes) -> None:
        asked.append(engine)
        getattr(EngineCore, method)(SimpleNamespace(scheduler=Mock()), *args)

    engine_core = object.__new__(client)
    engine_core.core_engines, engine_core.core_engine = [b"0", b"1"], b"0"
    engine_core._call_utility_async = call
    llm: Any = SimpleNamespace(engine_core=engine_core)
    asyncio.run(RustFrontEnd.abort_requests(Mock(), llm))
    assert expected == asked

"""Unload, reload and sudden death. The tests run in the order in which they stand here."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.triton_server import (
    TritonServer,
    add_model,
    ask,
    assert_ended_once,
    await_restart,
    check_prerequisites,
    generate,
    kill_stub,
    refusal,
    start_requests,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for these tests alone: the last one breaks it."""
    check_prerequisites()
    repository = tmp_path_factory.mktemp("model_repository")
    add_model(repository)
    server = TritonServer(repository, "lifecycle", "vllm")
    yield server
    server.kill()


def test_unload_with_requests_in_flight_then_reload(server: TritonServer) -> None:
    """An unload ends each running request exactly once; loaded again, the model serves again."""
    with ExitStack() as stack:
        requests = start_requests(server, stack, 20, 40, 80)
        server.unload("vllm")
        for request in requests:
            assert_ended_once(request)
    server.await_state("vllm", "UNAVAILABLE")
    assert [] == server.await_no_processes(5, "VLLM::")
    assert [] == server.await_no_processes(5, "triton_python_backend_stub")
    assert "" == server.load("vllm")
    assert " Paris" == generate(server, "The capital of France is", max_tokens=1)


def test_a_dead_engine_is_restarted(server: TritonServer) -> None:
    """A killed engine fails its requests within a second, refuses others, then serves again."""
    (stub,) = server.processes("triton_python_backend_stub")
    with ExitStack() as stack:
        (request,) = start_requests(server, stack, 400)
        (engine,) = server.processes("VLLM::EngineCore")
        engine.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        last = request.all(seconds=5)[-1]
        assert "the engine died" in last.error
        assert request.sent + last.seconds - killed < 1
    (refused,) = ask(server, {"text_input": "x"}, seconds=2)
    assert "is being restarted" in refused.error
    assert refused.seconds < 1
    assert "UNAVAILABLE" == refusal(server, {"text_input": "x"})[0]
    await_restart(server, 1)
    assert " Paris" == generate(server, "The capital of France is", max_tokens=1)
    assert [stub] == server.processes("triton_python_backend_stub")
    assert 1 == len(server.processes("VLLM::EngineCore"))


def test_a_killed_stub_takes_its_engine_along(server: TritonServer) -> None:
    """When the stub dies by a signal, the engine does not live on and hold the device."""
    assert server.processes("VLLM::EngineCore")
    (stub,) = server.processes("triton_python_backend_stub")
    kill_stub(stub)
    assert [] == server.await_no_processes(5, "VLLM::")

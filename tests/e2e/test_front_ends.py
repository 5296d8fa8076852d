"""Several front ends on one engine. The tests run in the order in which they stand here."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.e2e.triton_server import (
    ENGINE_ARGS,
    TritonServer,
    add_model,
    ask,
    assert_ended_once,
    await_restart,
    check_prerequisites,
    generate,
    kill_stub,
    start_requests,
    use_front_ends,
)

pytestmark = pytest.mark.timeout(400)

FRONT_ENDS = 2
LONG = 4000  # tokens: of several requests none ends before the last has begun


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for these tests alone: the last one breaks it.

    It completes no configuration, so that config.pbtxt has to be complete by itself.
    """
    check_prerequisites()
    repository = tmp_path_factory.mktemp("model_repository")
    args = json.dumps(ENGINE_ARGS | {"max_model_len": LONG + 96})
    use_front_ends(add_model(repository, engine_args=args), FRONT_ENDS)
    options = ("--disable-auto-complete-config",)
    server = TritonServer(repository, "front_ends", "vllm", options=options)
    yield server
    server.kill()


def ask_one(server: TritonServer) -> str:
    """Send a request and return the error that it gets."""
    return ask(server, {"text_input": "x", "stream": True})[-1].error


def stubs(server: TritonServer) -> list[int]:
    return sorted(p.pid for p in server.processes("triton_python_backend_stub"))


def test_front_ends_share_one_engine(server: TritonServer) -> None:
    """An instance group of two is two stub processes and one engine core."""
    assert FRONT_ENDS == len(stubs(server))
    assert 1 == len(server.processes("VLLM::EngineCore"))


def test_all_front_ends_answer(server: TritonServer) -> None:
    """Requests are spread over the front ends, and each answers right."""
    with ThreadPoolExecutor(16) as pool:
        prompts = ["The capital of France is"] * 16
        texts = list(pool.map(lambda p: generate(server, p, max_tokens=1), prompts))
    assert [" Paris"] * 16 == texts
    for index in range(FRONT_ENDS):
        server.await_log(f"front end {index + 1} of {FRONT_ENDS} joins the engine", seconds=1)


def test_unload_with_requests_in_flight_then_reload(server: TritonServer) -> None:
    """An unload ends requests on every front end; the reload gets a new engine."""
    with ExitStack() as stack:
        requests = start_requests(server, stack, 20, 40, 60, 80)
        server.unload("vllm")
        for request in requests:
            assert_ended_once(request)
    server.await_state("vllm", "UNAVAILABLE")
    assert [] == server.await_no_processes(5, "VLLM::")
    assert "" == server.load("vllm")
    assert " Paris" == generate(server, "The capital of France is", max_tokens=1)
    assert 1 == len(server.processes("VLLM::EngineCore"))


def test_a_dead_engine_is_restarted(server: TritonServer) -> None:
    """Requests on every front end fail within a second; later ones are served by a new engine."""
    before = stubs(server)
    with ExitStack() as stack:
        requests = start_requests(server, stack, *[LONG] * 4)
        (engine,) = server.processes("VLLM::EngineCore")
        engine.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        for request in requests:
            last = request.all(seconds=5)[-1]
            assert "the engine died" in last.error
            assert request.sent + last.seconds - killed < 1
    await_restart(server, FRONT_ENDS)
    with ThreadPoolExecutor(16) as pool:
        prompts = ["The capital of France is"] * 16
        texts = list(pool.map(lambda p: generate(server, p, max_tokens=1), prompts))
    assert [" Paris"] * 16 == texts
    assert before == stubs(server)


def test_a_killed_leader_takes_the_engine_along(server: TritonServer) -> None:
    """After a restart, kill -9 of the stub that launched the engine leaves no process of it."""
    (engine,) = server.processes("VLLM::EngineCore")
    leader = engine.parent()
    assert leader is not None
    assert leader.pid in stubs(server)
    kill_stub(leader)
    assert [] == server.await_no_processes(5, "VLLM::")
    # The other front end knows that nobody will start another engine.
    request = next(r for r in (ask_one(server) for _ in range(4)) if "healthy" not in r)
    assert "the engine died" in request

"""Two front ends on one engine, asked through both protocols.

The tests run in the order of this file; the last one breaks the server.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import openai
import psutil
import pytest

from tests.e2e.grpc_requests import ask, assert_ended_once, generate, start_requests
from tests.e2e.openai_port import client_of, complete, complete_some, eventually, is_open, streams
from tests.e2e.processes import kill_stub
from tests.e2e.tiny_server import CONTEXT
from tests.e2e.triton_server import GONE_SECONDS, HAS_GPU, TOLD_SECONDS, TritonServer, await_restart
from tests.e2e.two_front_ends import FRONT_ENDS, TwoFrontEnds

pytestmark = pytest.mark.timeout(400)

LONG = CONTEXT - 10  # tokens: of several requests none ends before the last has begun


@pytest.fixture
def server(two: TwoFrontEnds) -> TritonServer:
    """The server of the group."""
    return two.triton


@pytest.fixture(scope="module")
def truth(two: TwoFrontEnds) -> str:
    """The model's answer before any fault."""
    return generate(two.triton, "Hello")


def stubs(server: TritonServer) -> list[int]:
    return sorted(p.pid for p in server.processes("triton_python_backend_stub"))


def refusal(port: int) -> str:
    """Ask the OpenAI-compatible port for something; return the error, empty if there is none."""
    with client_of(port) as client:
        try:
            complete(client)
        except openai.APIStatusError as error:
            return str(error.message)
    return ""


def assert_all_answer(two: TwoFrontEnds, truth: str) -> None:
    """Requests through both protocols are answered right, on whichever front end they are."""
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda _: generate(two.triton, "Hello"), range(16)))
    assert [truth] * 16 == texts
    assert [2] * 16 == complete_some(two.port, 16)


def test_front_ends_share_one_engine(server: TritonServer) -> None:
    """An instance group of two is two stub processes and one engine core."""
    assert FRONT_ENDS == len(stubs(server))
    assert 1 == len(server.processes("VLLM::EngineCore"))


def test_all_front_ends_answer(two: TwoFrontEnds, truth: str) -> None:
    """Requests are spread over the front ends, and each answers right."""
    assert_all_answer(two, truth)
    for index in range(FRONT_ENDS):
        two.triton.await_log(f"front end {index + 1} of {FRONT_ENDS} joins the engine", seconds=1)


def test_an_unload_drains_every_front_end(two: TwoFrontEnds, truth: str) -> None:
    """Requests of both protocols are finished on all of them; loaded again, the model serves."""
    with streams(two.port, 8, 1500) as begun, ExitStack() as stack:
        requests = start_requests(two.triton, stack, 20, 40, 60, 80)
        two.triton.unload("vllm")
        for request in requests:
            assert_ended_once(request)
        # Not before: Triton 24.10 finalizes no model whose gRPC streams are open.
        eventually(lambda: not is_open(two.port), "no connection is accepted any more")
        ends = [list(stream)[-1].choices[0].finish_reason for stream in begun]
    assert ["length"] * 8 == ends
    two.triton.await_state("vllm", "UNAVAILABLE", 120)
    assert not is_open(two.port)
    assert [] == two.triton.await_no_processes(GONE_SECONDS, "VLLM::")
    assert "" == two.triton.load("vllm")
    assert_all_answer(two, truth)
    assert 1 == len(two.triton.processes("VLLM::EngineCore"))


def test_a_dead_engine_is_restarted(two: TwoFrontEnds, truth: str) -> None:
    """Requests of both protocols are told at once, on every front end; a new engine serves.

    The OpenAI-compatible port stays open meanwhile, and answers with 503.
    """
    before = stubs(two.triton)
    since = two.triton.log_size()
    with streams(two.port, 4, LONG) as begun, ExitStack() as stack:
        requests = start_requests(two.triton, stack, *[LONG] * 4)
        (engine,) = two.triton.processes("VLLM::EngineCore")
        engine.kill()
        killed = time.monotonic()
        for request in requests:
            last = request.all(seconds=20)[-1]
            assert "the engine died" in last.error
            assert request.sent + last.seconds - killed < TOLD_SECONDS
        for stream in begun:
            with pytest.raises(openai.APIError, match=r"the engine died .* is being restarted"):
                list(stream)
        assert time.monotonic() - killed < 2 * TOLD_SECONDS  # one after the other are read
    eventually(lambda: "503 - the engine died" in refusal(two.port), "requests are refused")
    assert "is being restarted" in refusal(two.port)
    with client_of(two.port) as client, pytest.raises(openai.InternalServerError, match="503"):
        client.get("../health", cast_to=object)
    (refused,) = ask(two.triton, {"text_input": "x"}, seconds=20)
    assert "is being restarted" in refused.error
    await_restart(two.triton, FRONT_ENDS, since=since)
    assert_all_answer(two, truth)
    assert before == stubs(two.triton)


def forked(server: TritonServer) -> dict[str, psutil.Process]:
    """Return the fork server and what it has forked: the engine core and, on a CPU, a worker.

    On one GPU the engine core is its own worker.
    """
    (engine,) = server.processes("VLLM::EngineCore")
    workers = server.processes("VLLM::Worker")
    assert len(workers) == (0 if HAS_GPU else 1)
    fork_server = engine.parent()
    assert fork_server is not None
    assert all(fork_server == worker.parent() for worker in workers)
    assert fork_server.pid not in stubs(server)
    return {"fork server": fork_server, "worker": next(iter(workers), engine)}


@pytest.mark.parametrize("killed", ["worker", "fork server"])
def test_what_is_forked_is_replaced(two: TwoFrontEnds, truth: str, killed: str) -> None:
    """An engine ends with its worker, and with the fork server; the next one is forked, too."""
    before = forked(two.triton)
    since = two.triton.log_size()
    before[killed].kill()
    await_restart(two.triton, FRONT_ENDS, since=since)
    after = forked(two.triton)
    assert before["worker"] != after["worker"]
    assert (killed == "worker") == (before["fork server"] == after["fork server"])
    if killed == "fork server":
        two.triton.await_log("the fork server has ended, and is started again", since=since)
    assert_all_answer(two, truth)


def test_a_killed_leader_takes_the_engine_along(server: TritonServer) -> None:
    """After a restart, kill -9 of the stub that launched the engine leaves no process of it."""
    (engine,) = server.processes("VLLM::EngineCore")
    (leader,) = (process for process in engine.parents() if process.pid in stubs(server))
    kill_stub(leader)
    assert [] == server.await_no_processes(GONE_SECONDS, "VLLM::")
    # The other front end finds that no front end will start another engine.
    errors = (ask(server, {"text_input": "x", "stream": True})[-1].error for _ in range(4))
    assert "the engine died" in next(error for error in errors if "healthy" not in error)

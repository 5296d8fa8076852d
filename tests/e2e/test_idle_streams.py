"""A gRPC stream that a client leaves open holds Triton up, and not the engine.

The tests run in the order of this file.
"""

from __future__ import annotations

import signal

import pytest

from tests.e2e.grpc_requests import Request, generate, sampling
from tests.e2e.limited import Limited
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(300)

DRAIN_SECONDS = 11  # the OpenAI port's ten by default, as they are longer than Triton's; and one


def idle_stream(server: TritonServer) -> Request:
    """Return a request that has been answered, on a stream that stays open."""
    parameters = sampling(timeout_seconds=60)  # the server's own limit is for an idle machine
    request = Request(server, {"text_input": "Hello", "sampling_parameters": parameters})
    while not (response := request.next()).final:
        assert not response.error
    return request


def test_an_unload_ends_the_engine(limited: Limited) -> None:
    """Triton may hold the model until the stream ends; then the unload is complete."""
    server = limited.triton
    with idle_stream(server):
        server.unload("vllm")
        limit = DRAIN_SECONDS + GONE_SECONDS
        assert [] == server.await_no_processes(limit, "VLLM::")
    server.await_state("vllm", "UNAVAILABLE")


def test_after_the_unload_the_model_can_be_loaded(limited: Limited) -> None:
    """Its port is free again."""
    assert "" == limited.triton.load("vllm")
    assert generate(limited.triton, "Hello", max_tokens=2, timeout_seconds=60)
    assert 2 == limited.completions(tokens=2).usage.completion_tokens


def test_a_stop_ends_the_engine(limited: Limited) -> None:
    """After the drain. Triton waits for the client, then it ends, and nothing is left."""
    server = limited.triton
    since = server.log_size()
    with idle_stream(server):
        server.process.send_signal(signal.SIGTERM)
        server.await_log("Triton still holds the model after the drain", since=since)
        assert [] == server.await_no_processes(GONE_SECONDS, "VLLM::")
    server.process.wait(STOP_SECONDS)
    assert [] == server.await_no_processes(GONE_SECONDS)

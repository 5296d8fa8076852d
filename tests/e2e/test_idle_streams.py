"""A gRPC stream that a client leaves open holds Triton up, and not the engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, Request, TritonServer, sampling

pytestmark = pytest.mark.timeout(300)

DRAIN_SECONDS = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with a short drain; the last test ends it."""
    repository = add_tiny_model(
        tmp_path_factory.mktemp("idle"), {"drain_timeout_seconds": DRAIN_SECONDS}
    )
    server = TritonServer(repository, "idle_streams", "vllm")
    yield server
    server.kill()


def idle_stream(server: TritonServer) -> Request:
    """Return a request that has been answered, on a stream that stays open."""
    request = Request(server, {"text_input": "Hello", "sampling_parameters": sampling()})
    while not (response := request.next()).final:
        assert not response.error
    return request


def test_an_unload_ends_the_engine(server: TritonServer) -> None:
    """Triton may hold the model until the stream ends; then the unload is complete."""
    with idle_stream(server):
        server.unload("vllm")
        assert [] == server.await_no_processes(DRAIN_SECONDS + GONE_SECONDS, "VLLM::")
    server.await_state("vllm", "UNAVAILABLE")


def test_a_stop_ends_the_engine(server: TritonServer) -> None:
    """After the drain. Triton waits for the client, then it ends, and nothing is left."""
    assert "" == server.load("vllm")
    since = server.log_size()
    with idle_stream(server):
        server.process.send_signal(signal.SIGTERM)
        server.await_log("Triton still holds the model after the drain", since=since)
        assert [] == server.await_no_processes(GONE_SECONDS, "VLLM::")
    server.process.wait(STOP_SECONDS)
    assert [] == server.await_no_processes(GONE_SECONDS)

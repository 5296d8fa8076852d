"""The end of a model, and of the server, while requests run that do not end by themselves.

The tests run in the order of this file; the last one ends the server of the group.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import pytest

from tests.e2e.grpc_requests import start_requests
from tests.e2e.load import http_stream, occupy, read_http_stream
from tests.e2e.tiny_server import CONTEXT
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(300)

DRAIN_SECONDS = 3  # as the server `crowded` has it
SLACK = 15.0  # seconds that a loaded machine may add


@pytest.fixture
def server(crowded: TritonServer) -> TritonServer:
    """The server of the group."""
    return crowded


def test_an_unload_ends_what_does_not_finish(server: TritonServer) -> None:
    """A short request finishes, an endless one gets UNAVAILABLE after drain_timeout_seconds."""
    with ExitStack() as stack:
        (endless_one,) = occupy(server, stack, 1)
        (short,) = start_requests(server, stack, 30)
        server.unload("vllm")
        start = time.monotonic()
        assert short.all()[-1].final
        last = endless_one.all()[-1]
        assert f"{DRAIN_SECONDS} s of grace are over" in last.error
        assert time.monotonic() - start < DRAIN_SECONDS + 2 + SLACK
    server.await_log("requests may run for 3 s more", seconds=1)
    server.await_log("1 requests aborted", seconds=1)
    server.await_state("vllm", "UNAVAILABLE")
    assert [] == server.await_no_processes(GONE_SECONDS, "VLLM::")


def test_sigterm_ends_what_does_not_finish(server: TritonServer) -> None:
    """They end within the exit timeout; the exit code is 0 even after a second SIGTERM."""
    assert "" == server.load("vllm")
    with ExitStack() as stack:
        (endless_one,) = occupy(server, stack, 1)
        (short,) = start_requests(server, stack, 30)
        with http_stream(server, "Hello", CONTEXT - 10) as http:
            http.recv(1)
            server.process.send_signal(signal.SIGTERM)
            assert short.all()[-1].final
            server.process.send_signal(signal.SIGTERM)
            assert "s of grace are over" in endless_one.all()[-1].error
            assert "s of grace are over" in read_http_stream(http)
        assert 0 == server.process.wait(STOP_SECONDS)  # beyond its exit timeout Triton's is 1
    assert [] == server.await_no_processes(GONE_SECONDS)

"""The end of a model, and of the server, while requests are under way that would never end.

One server, on which the tests run in the order in which they stand here, and one for the last.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from tests.e2e.load import http_stream, occupy, read_http_stream
from tests.e2e.openai_port import streams
from tests.e2e.tiny_server import CONTEXT, add_tiny_model
from tests.e2e.triton_server import (
    EXIT_TIMEOUT_SECONDS,
    STOP_SECONDS,
    TritonServer,
    free_ports,
    start_requests,
    use_front_ends,
)

pytestmark = pytest.mark.timeout(300)

DRAIN_SECONDS = 3
SLACK = 15.0  # seconds that a loaded machine may add


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for these tests alone."""
    serving = {"metrics_interval_seconds": 0.1, "drain_timeout_seconds": DRAIN_SECONDS}
    repository = add_tiny_model(tmp_path_factory.mktemp("end"), serving, max_num_seqs=4)
    server = TritonServer(repository, "end", "vllm")
    yield server
    server.kill()


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
    assert [] == server.await_no_processes(5, "VLLM::")


def test_sigterm_ends_what_does_not_finish(server: TritonServer) -> None:
    """As an unload, within the exit timeout, with exit code 0; a second SIGTERM does no harm."""
    assert "" == server.load("vllm")
    with ExitStack() as stack:
        (endless_one,) = occupy(server, stack, 1)
        (short,) = start_requests(server, stack, 30)
        with http_stream(server, "Hello", CONTEXT - 10) as http:
            http.recv(1)
            server.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            assert short.all()[-1].final
            server.process.send_signal(signal.SIGTERM)
            assert "s of grace are over" in endless_one.all()[-1].error
            assert "s of grace are over" in read_http_stream(http)
        assert 0 == server.process.wait(STOP_SECONDS)
        assert time.monotonic() - start < EXIT_TIMEOUT_SECONDS
    assert [] == server.await_no_processes(5)


FRONT_ENDS = 2
LONG_DRAIN_SECONDS = 12  # twice that would be beyond the exit timeout


def test_sigterm_ends_requests_of_both_doors(tmp_path: Path) -> None:
    """Endless ones of Triton's and of OpenAI's, on each front end: in time, with exit code 0.

    Their drains do not follow one another.
    """
    (port,) = free_ports(1)
    own = {"port": port, "served_model_name": "tiny", "drain_timeout_seconds": LONG_DRAIN_SECONDS}
    serving = {"metrics_interval_seconds": 0.1, "drain_timeout_seconds": LONG_DRAIN_SECONDS}
    repository = add_tiny_model(tmp_path, serving | {"openai": own}, max_num_seqs=16)
    use_front_ends(repository / "vllm", FRONT_ENDS)
    server = TritonServer(repository, "end_both", "vllm")
    told = f"{LONG_DRAIN_SECONDS} s of grace are over"
    try:
        with ExitStack() as stack:
            begun = stack.enter_context(streams(port, 4, CONTEXT - 10))
            requests = start_requests(server, stack, *[CONTEXT - 20] * FRONT_ENDS)
            server.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            for stream in begun:
                with pytest.raises(openai.APIError, match=told):
                    list(stream)
            for request in requests:
                assert told in request.all()[-1].error
        assert 0 == server.process.wait(STOP_SECONDS)
        assert time.monotonic() - start < EXIT_TIMEOUT_SECONDS
        assert [] == server.await_no_processes(5)
        server.await_log("OpenAI requests aborted", seconds=1)
    finally:
        server.kill()

"""The end of the server that the other modules of its group share: the last one there."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from tests.e2e.grpc_requests import assert_ended_once, start_requests
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(300)


def test_shutdown_with_requests_in_flight(triton: TritonServer) -> None:
    """SIGTERM lets the running requests finish, exits with 0 in time, and leaves no process."""
    with ExitStack() as stack:
        requests = start_requests(triton, stack, 20, 40, 80)
        triton.process.send_signal(signal.SIGTERM)
        for request in requests:
            # This closes the client's half of the stream. Triton 24.10 keeps a model alive for as
            # long as a stream is open on which a request to it was ever made.
            assert_ended_once(request)
        assert 0 == triton.process.wait(STOP_SECONDS)  # beyond its exit timeout Triton's is 1
    assert [] == triton.await_no_processes(GONE_SECONDS)

"""SIGTERM while requests of both protocols run that do not end by themselves."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from tests.e2e.grpc_requests import start_requests
from tests.e2e.model_folder import use_front_ends
from tests.e2e.openai_port import streams
from tests.e2e.processes import free_ports
from tests.e2e.tiny_server import CONTEXT, add_tiny_model
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(300)

FRONT_ENDS = 2
LONG_DRAIN_SECONDS = 12  # twice that would be beyond the exit timeout


def test_sigterm_ends_requests_of_both_protocols(tmp_path: Path) -> None:
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
            for stream in begun:
                with pytest.raises(openai.APIError, match=told):
                    list(stream)
            for request in requests:
                assert told in request.all()[-1].error
        assert 0 == server.process.wait(STOP_SECONDS)  # beyond its exit timeout Triton's is 1
        assert [] == server.await_no_processes(GONE_SECONDS)
        server.await_log("OpenAI requests aborted", seconds=1)
    finally:
        server.kill()

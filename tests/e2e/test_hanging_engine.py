"""SIGTERM while the engine hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(200)

EXIT_SECONDS = 10  # 4 of them for the engine; with the default of 30 it would have 10
SLACK = 4.0  # seconds that a busy machine may add


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    """A server that gives its models little time to stop."""
    options = (f"--exit-timeout-secs={EXIT_SECONDS}",)
    server = TritonServer(add_tiny_model(tmp_path, {}), "hanging_engine", "vllm", options=options)
    yield server
    server.kill()


def test_an_engine_that_hangs_is_killed_in_time(server: TritonServer) -> None:
    """Before the exit timeout, after the four seconds that are its own; no process is left."""
    (core,) = server.processes("VLLM::EngineCore")
    core.suspend()
    server.process.terminate()
    server.await_log("[shutdown] MPClient: start", seconds=STOP_SECONDS)
    since = time.monotonic()
    assert [] == server.await_no_processes(EXIT_SECONDS, "VLLM::")
    assert 3 < time.monotonic() - since < 4 + SLACK
    server.process.wait(STOP_SECONDS)
    assert [] == server.await_no_processes(GONE_SECONDS)

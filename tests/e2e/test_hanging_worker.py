"""SIGTERM while the engine's worker hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import GONE_SECONDS, STOP_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(200)

EXIT_SECONDS = 10  # 3 of them for the engine, where vLLM would wait for 10


def test_a_worker_that_hangs_does_not_delay_a_stop(tmp_path: Path) -> None:
    """The engine is killed in time for Triton to exit with 0, and leaves no process."""
    repository = add_tiny_model(tmp_path, {})
    options = (f"--exit-timeout-secs={EXIT_SECONDS}",)
    server = TritonServer(repository, "hanging_worker", "vllm", options=options)
    try:
        (worker,) = server.processes("VLLM::Worker")
        worker.suspend()
        server.process.terminate()
        assert 0 == server.process.wait(STOP_SECONDS)  # beyond its exit timeout Triton's is 1
        assert [] == server.await_no_processes(GONE_SECONDS)
    finally:
        server.kill()

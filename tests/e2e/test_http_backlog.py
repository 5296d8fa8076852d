"""Many HTTP streams while Triton's HTTP threads get no CPU for a while: no text is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peers.peer import Peer
from peers.setup import Setup, command
from tests.e2e.model_folder import EXECUTION_ENV, ROOT, TRITON
from tests.e2e.triton_server import TritonServer, running

pytestmark = pytest.mark.timeout(200)

STREAMS = 64
WORDS = 150
ASKED = 10  # requests on each connection, by which the threads that serve them are known
HOG = """
import time
for _ in range(400):
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    time.sleep(0.05)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    """Serve our send path without an engine, which generates as fast as Triton takes it."""
    setup = Setup(
        folder=tmp_path,
        python=Path(sys.executable),
        triton=TRITON,
        template=ROOT / "model_repository/vllm",
        execution_env=EXECUTION_ENV,
        official_backend=None,
        engine_args={},
    )
    peer = Peer.parse("send-2x2-http")
    command(peer, setup, (0, 0, 0, 0))
    with running(tmp_path / peer.server / "models", "http-backlog", "bench") as server:
        yield server


def switches(server: TritonServer) -> dict[int, int]:
    """Return how often each of the server's threads has waited for something."""
    found = {}
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # one that has ended
            status = (task / "status").read_text().split("\nvoluntary_ctxt_switches:")
            found[int(task.name)] = int(status[1].split()[0])
    return found


def http_threads(server: TritonServer, connections: list[http.client.HTTPConnection]) -> list[int]:
    """Return the threads that may serve a connection: those that wake for half of its requests."""
    before = switches(server)
    for _ in range(ASKED):
        for connection in connections:
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
    return [t for t, n in switches(server).items() if n - before.get(t, 0) >= ASKED / 2]


@contextlib.contextmanager
def little_cpu(threads: list[int]) -> Iterator[None]:
    """Let ``threads`` run only while a busy process on the same CPU pauses."""
    own = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "").partition(",")[0]
    cpu = {int(own) if own.isdecimal() else min(os.sched_getaffinity(0))}
    for thread in threads:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        os.sched_setaffinity(thread, cpu)
    hog = subprocess.Popen([sys.executable, "-c", HOG])
    try:
        os.sched_setaffinity(hog.pid, cpu)
        yield
    finally:
        hog.kill()
        hog.wait()


def words_of_stream(connection: http.client.HTTPConnection) -> int:
    """Return how many words a stream has, read to its end."""
    request = {"text_input": "a", "stream": True, "exclude_input_in_output": True}
    request["sampling_parameters"] = json.dumps({"max_tokens": WORDS})
    connection.request("POST", "/v2/models/bench/generate_stream", json.dumps(request))
    return connection.getresponse().read().count(b" word")


def test_no_word_is_lost(server: TritonServer) -> None:
    """The threads stand still for longer than it takes to fill their sockets."""
    with contextlib.ExitStack() as stack:
        connections = [
            http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=100)
            for _ in range(STREAMS)
        ]
        for connection in connections:
            stack.enter_context(contextlib.closing(connection))
            connection.connect()
        threads = http_threads(server, connections)
        assert threads
        stack.enter_context(little_cpu(threads))
        pool = stack.enter_context(ThreadPoolExecutor(STREAMS))
        words = list(pool.map(words_of_stream, connections))
    assert [WORDS] * STREAMS == words
    log = server.log.read_text(errors="replace")
    assert "Triton's HTTP is slower than the engine" in log  # else nothing would have been lost
    assert "may lose responses" not in log

"""Many HTTP streams while Triton's HTTP threads get no CPU for a while: no text is lost."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peers.peer import Peer
from peers.setup import Setup, command
from tests.e2e.triton_server import EXECUTION_ENV, ROOT, TRITON, TritonServer, running

pytestmark = pytest.mark.timeout(200)

STREAMS = 64
WORDS = 400
ASKED = 200  # requests, by which the threads that answer HTTP are known
HOG = """
import time
while True:
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
        status = (task / "status").read_text().split("\nvoluntary_ctxt_switches:")
        found[int(task.name)] = int(status[1].split()[0])
    return found


def http_threads(server: TritonServer) -> list[int]:
    """Return the threads that answer over HTTP: those that wake for each of many requests."""
    before = switches(server)
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    with contextlib.closing(connection):
        for _ in range(ASKED):
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
    return [t for t, n in switches(server).items() if n - before.get(t, 0) > ASKED / 2]


@contextlib.contextmanager
def little_cpu(threads: list[int]) -> Iterator[None]:
    """Let ``threads`` run only while a busy process on the same CPU pauses."""
    cpu = {min(os.sched_getaffinity(0))}
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


def words_of_stream(server: TritonServer) -> int:
    """Return how many words a stream has, read to its end."""
    request = {"text_input": "a", "stream": True, "exclude_input_in_output": True}
    request["sampling_parameters"] = json.dumps({"max_tokens": WORDS})
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v2/models/bench/generate_stream", json.dumps(request))
        return connection.getresponse().read().count(b" word")


def test_no_word_is_lost(server: TritonServer) -> None:
    """The threads stand still for longer than it takes to fill their sockets."""
    threads = http_threads(server)
    assert threads
    with little_cpu(threads), ThreadPoolExecutor(STREAMS) as pool:
        began = time.monotonic()
        words = list(pool.map(lambda _: words_of_stream(server), range(STREAMS)))
    assert [WORDS] * STREAMS == words
    assert time.monotonic() - began < 60

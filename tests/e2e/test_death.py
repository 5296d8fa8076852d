"""Sudden deaths, of a worker, an engine out of tries, and a front end, as a probe sees them.

One server with a tiny model on two workers. The tests run in the order of this file.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.grpc_requests import ask, generate, start_requests
from tests.e2e.probing import MAX_AGE, await_probe, probe
from tests.e2e.processes import kill_stub
from tests.e2e.tiny_server import CONTEXT, add_tiny_model, await_gpu_memory, gpu_memory_mb
from tests.e2e.triton_server import GONE_SECONDS, LOAD_SECONDS, TOLD_SECONDS, TritonServer

pytestmark = pytest.mark.timeout(300)

CORES = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "0")
VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND": f"{CORES}|{CORES}"}  # of each of the two workers


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository for these tests alone."""
    serving = {"max_engine_restarts": 1, "metrics_interval_seconds": 0.5}
    return add_tiny_model(
        tmp_path_factory.mktemp("death"), serving, tensor_parallel_size=2, trust_remote_code=True
    )


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    """A server that does not survive these tests whole."""
    server = TritonServer(repository, "death", "vllm", variables=VARIABLES)
    yield server
    server.kill()


def shared_memory(server: TritonServer) -> set[str]:
    """Return the files in /dev/shm that the engine's processes use, made by Python.

    Two workers on CPUs have one more each, ``vllm_dist_...``, that vLLM's own code makes and that a
    kill leaves behind; on GPUs they have none.
    """
    lines = [
        line
        for process in server.processes("VLLM::")
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    ]
    paths = {line.partition("/dev/shm/")[2] for line in lines}
    return {path for path in paths if path.startswith("psm_") and "(deleted)" not in path}


def test_the_probes_are_green(server: TritonServer) -> None:
    """A model that serves is live and ready, by metrics and by a request."""
    await_probe(server, "live", "live: yes")
    await_probe(server, "ready", "ready: yes")
    assert generate(server, "Hello")  # two workers on one CPU take seconds for the very first one
    assert (0, "ready: yes") == probe(server, "ready", "--request")
    code, line = probe(server, "ready", "--model=nosuch")
    assert (1, True) == (code, "no heartbeat of nosuch" in line)


def test_code_that_comes_with_the_model_is_warned_of(server: TritonServer) -> None:
    """The operator who lets it run reads so in the log."""
    server.await_log("runs code that comes with the model", seconds=1)


def test_a_dead_worker_is_replaced(server: TritonServer) -> None:
    """After kill -9 of one of two workers, requests fail at once and the engine restarts."""
    truth = generate(server, "Hello")
    assert 2 == len(server.processes("VLLM::Worker"))
    with ExitStack() as stack:
        (request,) = start_requests(server, stack, CONTEXT - 10)
        server.processes("VLLM::Worker")[0].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        last = request.all(seconds=20)[-1]
        assert "the engine died (process" in last.error
        assert request.sent + last.seconds - killed < TOLD_SECONDS
    await_probe(server, "ready", "ready: no: the engine is down")
    # For as long as the restart takes: a liveness probe that turned red would end it.
    while ": engine restarted (" not in server.log.read_text(errors="replace"):
        assert (0, "live: yes") == probe(server, "live")
        assert time.monotonic() - killed < LOAD_SECONDS
        time.sleep(0.5)
    await_probe(server, "ready", "ready: yes")
    assert truth == generate(server, "Hello")


def test_an_engine_out_of_tries_stays_down(server: TritonServer) -> None:
    """After the last try requests are refused, with the reason, and both probes turn red.

    Nothing but a restart of the container brings it back, and that is what a red ``live`` asks for.
    """
    (engine,) = server.processes("VLLM::EngineCore")
    since = server.log_size()
    engine.send_signal(signal.SIGKILL)
    server.await_log("the engine died", since=since)
    deadline = time.monotonic() + 30
    while not (error := ask(server, {"text_input": "x"}, seconds=10)[-1].error):
        assert time.monotonic() < deadline
    assert "the engine died" in error
    assert "restarted" not in error
    for what in ("live", "ready"):
        await_probe(server, what, f"{what}: no: the engine died and is not started again")
        assert 1 == probe(server, what, "--request")[0]


def test_a_killed_front_end_turns_the_liveness_probe_red(
    server: TritonServer, repository: Path
) -> None:
    """The container's restart serves again; a front end that is killed leaves nothing behind.

    Triton goes on calling the model READY; the probe does not.
    """
    server.kill()
    with ExitStack() as stack:
        again = TritonServer(repository, "death_again", variables=VARIABLES)
        stack.callback(again.kill)
        tritons_own = gpu_memory_mb()
        assert "" == again.load("vllm")
        await_probe(again, "ready", "ready: yes")
        assert generate(again, "Hello")
        used = shared_memory(again)
        assert used
        (request,) = start_requests(again, stack, CONTEXT - 10)
        (stub,) = again.processes("triton_python_backend_stub")
        kill_stub(stub)
        assert [] == again.await_no_processes(GONE_SECONDS, "VLLM::")
        await_gpu_memory(tritons_own)
        deadline = time.monotonic() + GONE_SECONDS
        while left := {name for name in used if Path("/dev/shm", name).exists()}:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
        # Killed while it sends, it may take tritonserver 24.10 along (kill_stub): red all the same.
        await_probe(again, "live", "live: no: ", seconds=MAX_AGE + 40)
        if again.process.poll() is None:
            assert "READY" == again.state_of("vllm")
        # Triton 24.10 tells a request that was under way nothing before it ends itself.
        again.kill()
        assert request.all(seconds=20)[-1].error

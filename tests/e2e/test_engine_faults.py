"""An engine that fails without being killed: no memory, a broken GPU, restarts that fail or hang.

Two servers with the tiny model: two front ends on one engine, and one. The tests of each run in the
order in which they stand here.
"""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.grpc_requests import ask, generate, start_requests
from tests.e2e.model_folder import use_front_ends
from tests.e2e.probing import await_probe, probe
from tests.e2e.tiny_server import CONTEXT, add_tiny_model, await_gpu_memory, gpu_memory_mb
from tests.e2e.triton_server import GONE_SECONDS, TOLD_SECONDS, TritonServer, await_restart

pytestmark = pytest.mark.timeout(400)

UNLOAD_SECONDS = 60.0  # far less than a restart that never ends


def start(directory: Path, front_ends: int, restarts: int) -> TritonServer:
    """Start a server whose worker has the faults in the folder ``faults`` beside it."""
    serving = {
        "max_engine_restarts": restarts,
        "metrics_interval_seconds": 0.5,
        "drain_timeout_seconds": 5,
    }
    repository = add_tiny_model(directory, serving, worker_cls="faulty_worker.FaultyWorker")
    use_front_ends(repository / "vllm", front_ends)
    # Where the engine's processes look, too: they get the stub's own search path.
    shutil.copy(Path(__file__).with_name("faulty_worker.py"), repository / "vllm/1")
    (directory / "faults").mkdir()
    variables = {"FAULTS": str(directory / "faults")}
    return TritonServer(repository, f"engine_faults_{front_ends}", "vllm", variables=variables)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared server's model and faults are."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def gpu_mb() -> int:
    """What is in use on the GPUs before the shared server starts, in MiB."""
    return gpu_memory_mb()


@pytest.fixture(scope="module")
def shared(directory: Path, gpu_mb: int) -> Iterator[TritonServer]:
    """Two front ends, whose engine restarts twice; ``gpu_mb`` was in use before."""
    server = start(directory, front_ends=2, restarts=2)
    yield server
    server.kill()


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        pytest.param(
            ["hang", "memory"],
            r"OutOfMemoryError: CUDA out of memory\. Tried to allocate 2\.00 GiB\.",
            id="out of memory, and the process hangs",
        ),
        pytest.param(
            ["cuda"],
            "(Runtime|Accelerator)Error: CUDA error: device-side assert triggered",
            id="a CUDA error",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failed_engine_is_restarted(
    shared: TritonServer, directory: Path, faults: list[str], reason: str
) -> None:
    """Requests on every front end get the cause within a second; a new engine serves later ones."""
    truth = generate(shared, "Hello")
    since = shared.log_size()
    with ExitStack() as stack:
        requests = start_requests(shared, stack, *[CONTEXT - 10] * 4)
        for fault in faults:  # the last one is what happens first
            (directory / "faults" / fault).touch()
        failed = time.monotonic()
        for request in requests:
            last = request.all(seconds=20)[-1]
            assert re.search(rf"the engine died \((process \d+: )?{reason}", last.error)
            assert request.sent + last.seconds - failed < TOLD_SECONDS
    await_probe(shared, "ready", "ready: no: the engine is down")
    await_restart(shared, 2, since=since)
    assert [] == list((directory / "faults").iterdir()), "not all of them happened"
    await_probe(shared, "ready", "ready: yes")
    assert truth == generate(shared, "Hello")
    assert 1 == len(shared.processes("VLLM::EngineCore"))


def test_restarts_that_fail_have_an_end(shared: TritonServer, directory: Path) -> None:
    """Without a restart left, every front end reports that, and why the last attempt failed."""
    (directory / "faults/full").touch()
    since = shared.log_size()
    (engine,) = shared.processes("VLLM::EngineCore")
    engine.send_signal(signal.SIGKILL)
    shared.await_log("no restart: OutOfMemoryError: CUDA out of memory.", since=since, seconds=120)
    deadline = time.monotonic() + 180
    while not all("could not be restarted" in error for error in refusals(shared)):
        assert time.monotonic() < deadline, refusals(shared)
        time.sleep(0.5)
    assert any("Tried to allocate 9.00 GiB" in error for error in refusals(shared))
    await_probe(shared, "live", "live: no: the engine died and is not started again")
    for title in ("VLLM::EngineCore", "VLLM::Worker"):
        assert [] == shared.await_no_processes(GONE_SECONDS, title)


def test_what_is_out_of_tries_can_be_loaded_anew(shared: TritonServer, directory: Path) -> None:
    """With memory again, an unload and a load bring it back without a restart of Triton.

    Meanwhile it is live and not ready: no container needs a restart.
    """
    since = time.monotonic()
    shared.unload("vllm")
    shared.await_state("vllm", "UNAVAILABLE", UNLOAD_SECONDS)
    assert time.monotonic() - since < UNLOAD_SECONDS
    for options in ((), ("--request",)):
        assert (0, "live: yes") == probe(shared, "live", *options)
        assert 1 == probe(shared, "ready", *options)[0]
    (directory / "faults/full").unlink()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(shared.load, "vllm")
        while not loading.done():
            assert (0, "live: yes") == probe(shared, "live")
            time.sleep(1)
        assert "" == loading.result()
    await_probe(shared, "ready", "ready: yes")
    assert generate(shared, "Hello")


def test_an_unload_does_not_wait_for_a_restart(shared: TritonServer, directory: Path) -> None:
    """The front ends give up the engine that they were waiting for."""
    restarting(shared, directory)
    shared.unload("vllm")
    shared.await_state("vllm", "UNAVAILABLE", UNLOAD_SECONDS)
    assert [] == shared.await_no_processes(GONE_SECONDS, "VLLM::")


def test_nothing_outlives_the_server(shared: TritonServer, gpu_mb: int) -> None:
    """All processes of a killed server end, although Triton's own stub may hang."""
    assert "" == shared.load("vllm")
    assert generate(shared, "Hello")
    assert 2 == len(shared.processes("triton_python_backend_stub"))
    shared.process.kill()
    assert [] == shared.await_no_processes(GONE_SECONDS)
    await_gpu_memory(gpu_mb)


@pytest.mark.slow
def test_a_sigterm_does_not_wait_for_a_restart(tmp_path: Path) -> None:
    """The server ends as well as ever, while the engine of its one front end is coming back."""
    server = start(tmp_path, front_ends=1, restarts=2)
    try:
        restarting(server, tmp_path)
        assert 0 == server.terminate()
        assert [] == server.await_no_processes(GONE_SECONDS)
    finally:
        server.kill()


def restarting(server: TritonServer, directory: Path) -> None:
    """Kill the engine; return when its restart loads the model, for ever."""
    slow = directory / "faults/slow"
    slow.touch()
    (engine,) = server.processes("VLLM::EngineCore")
    engine.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while slow.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refusals(server: TritonServer) -> list[str]:
    """Send requests until every front end has refused one; return the errors."""
    return [ask(server, {"text_input": "x"}, seconds=10)[-1].error for _ in range(8)]

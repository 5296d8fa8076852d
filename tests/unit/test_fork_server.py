"""Engine cores that are forked from a process that has imported already."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_process import END_SECONDS, PACKAGE, ends_within
from triton_vllm.topology.forked_process import Forks
from triton_vllm.vllm_api.engine_process import preload

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="prctl, pidfd"),
]

# What stands for vLLM: a module that says when it is imported, and where.
ENGINE = """
import contextlib, multiprocessing, os, threading, time
from triton_vllm.topology.forked_process import Forks

with open(os.environ["IMPORTS"], "a") as imports:
    imports.write(f"{os.getpid()}\\n")
if os.environ.get("TRITON_VLLM_IMPORT") == "fails":
    raise ImportError("no such library")
if os.environ.get("TRITON_VLLM_IMPORT") == "dies":
    os._exit(1)
if os.environ.get("TRITON_VLLM_IMPORT") == "hangs":
    time.sleep(600)
if os.environ.get("TRITON_VLLM_IMPORT") == "sets":
    os.environ["LIBRARY"] = "set by its import"
moved = []
forks = []

def after_fork(start):
    moved.append(start.moves)
    forks.append(Forks("core", start.channel, start.environment))

def say(out):
    variables = os.environ.get("TRITON_VLLM_X"), os.environ.get("LIBRARY")
    out.send((os.getppid(), variables, os.sched_getaffinity(0), moved))
    out.close()

def core(out, variables={}):
    os.environ.update(variables)
    ours, theirs = multiprocessing.Pipe()
    context = forks[0].context(multiprocessing.get_context("spawn"))
    worker = context.Process(target=work, args=(theirs,), name="Worker")
    worker.start()
    theirs.close()
    out.send((os.getpid(), worker.pid, ours.recv()))
    with contextlib.suppress(EOFError):
        ours.recv()
    worker.join()
    out.send(worker.exitcode)
    time.sleep(600)

def work(out):
    threads = [thread.name for thread in threading.enumerate()]
    out.send((os.getppid(), threads, os.environ.get("OMP_NUM_THREADS")))
    time.sleep(600)

def ask_as(out, pid):
    ours, theirs = os.pipe()
    os.getpid = lambda: pid
    forks[0].fork([ours, theirs])
    os.close(theirs)
    out.send(os.read(ours, 1))

def fail(out):
    raise SystemExit(7)
"""

STUB = """
import logging, multiprocessing, os, signal, sys, threading, time
from engine import ask_as, core, fail, say, work  # as the stub imports vLLM
from triton_vllm.errors import UnavailableError
from triton_vllm.topology.fork_server import ForkServer
from triton_vllm.topology.stub_process import prepare_process
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
prepare_process()
spawn = multiprocessing.get_context("spawn")
os.environ["TRITON_VLLM_IMPORT"] = sys.argv[1]
server = ForkServer("model", "engine", {"PRELOADED": "yes"})
os.environ["PRELOADED"] = "yes"  # as the resolution of a configuration does

def start(target, *args):
    ours, theirs = spawn.Pipe()
    process = server.context(spawn).Process(target=target, args=(theirs, *args), name="EngineCore")
    process.start()
    theirs.close()
    return process, ours

def is_forked():
    process, told = start(say)
    parent, *_ = told.recv()
    process.join()
    return parent == server._process.pid

def show(*values):
    print(*values, flush=True)
"""


class Stub:
    """A process that has a fork server, and runs code with it.

    ``imports`` says what the import in the fork server does: "fails", "hangs", "sets" a variable.
    """

    def __init__(self, directory: Path, code: str, imports: str = "") -> None:
        (directory / "engine.py").write_text(ENGINE)
        self._imports = directory / "imports"
        variables = {"PYTHONPATH": f"{PACKAGE}:{directory}", "IMPORTS": str(self._imports)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", STUB + code, imports],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | variables,
        )

    def imports(self) -> int:
        """Return how many processes have imported the module."""
        return len(self._imports.read_text().split())

    def numbers(self) -> list[int]:
        """Return the numbers in the next line of numbers that it prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.replace(" ", "").strip().isdecimal():
                return list(map(int, line.split()))
        raise AssertionError("it has ended")

    def kill(self) -> None:
        """End it, and what it has started."""
        self.process.kill()
        self.process.communicate()

    def lines(self) -> list[str]:
        """Return what it prints until it ends."""
        printed, _ = self.process.communicate(timeout=60)
        return printed.splitlines()


def test_an_engine_core_is_forked_from_what_has_imported(tmp_path: Path) -> None:
    """It has the stub's environment of that moment, and what its imports have set."""
    code = """
os.environ["TRITON_VLLM_X"] = "set later"
for _ in range(2):
    process, told = start(say)
    parent, variables, cpus, moved = told.recv()
    process.join()
    show(parent == server._process.pid, *variables, cpus == os.sched_getaffinity(0), moved)
server.stop()
"""
    stub = Stub(tmp_path, code, "sets")
    imported, *started = stub.lines()
    assert imported.startswith("model: the fork server imported vLLM beside that (")
    assert ["True set later set by its import True [False]"] * 2 == started
    assert 2 == stub.imports()  # the stub and the fork server


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_it_runs_on_the_cpus_of_the_thread_that_starts_it(tmp_path: Path) -> None:
    """As a child that is spawned does, for engine_cpu_affinity."""
    code = """
all_cpus = os.sched_getaffinity(0)
os.sched_setaffinity(0, {max(all_cpus)})
_, told = start(say)
_, _, cpus, moved = told.recv()
show(cpus == {max(all_cpus)}, moved)
"""
    assert "True [True]" == Stub(tmp_path, code).lines()[-1]


def test_an_engine_core_that_has_ended_gets_no_worker(tmp_path: Path) -> None:
    """It may have asked before it died; nobody would end what it has asked for."""
    code = """
_, told = start(ask_as, 1)
show(told.recv())
"""
    assert "b''" == Stub(tmp_path, code).lines()[-1]


def test_its_end_is_known(tmp_path: Path) -> None:
    """Its exit code, or the signal that has killed it."""
    code = """
process, _ = start(fail)
process.join()
killed, _ = start(core)
show(killed.is_alive())
killed.kill()
killed.join()
show(process.exitcode, killed.exitcode)
"""
    assert ["True", f"7 {-signal.SIGKILL}"] == Stub(tmp_path, code).lines()[-2:]


def test_a_worker_is_forked_too(tmp_path: Path) -> None:
    """With the engine core's environment; its end is known, and ends nobody else.

    It does not watch the server, as its engine core does.
    """
    variables = {"OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": "0 1"}
    code = f"""
process, told = start(core, {variables})
engine_core, worker, (parent, *seen) = told.recv()
os.kill(worker, signal.SIGKILL)
show(parent == server._process.pid, *seen, told.recv(), process.is_alive())
server.stop()
"""
    stub = Stub(tmp_path, code)
    expected = f"True ['MainThread'] 1 {-signal.SIGKILL} True"
    assert expected == stub.lines()[-1]
    assert 2 == stub.imports()


@pytest.mark.parametrize(
    ("of_the_server", "of_the_worker", "why"),
    [
        (None, "0 1", ""),
        ("0 1", "1", "the fork server has other values of GOMP_CPU_AFFINITY"),
        (None, "0 1 2", "OpenMP binds its threads to 3 CPUs when it is loaded"),
    ],
    ids=["two CPUs", "the fork server has others", "three CPUs"],
)
def test_a_worker_is_forked_where_its_openmp_threads_can_be_bound(
    monkeypatch: pytest.MonkeyPatch, of_the_server: str | None, of_the_worker: str, why: str
) -> None:
    """GNU's OpenMP binds them for good when it is loaded, which a fork comes too late for."""
    monkeypatch.delenv("GOMP_CPU_AFFINITY", raising=False)
    environment = os.environ | ({"GOMP_CPU_AFFINITY": of_the_server} if of_the_server else {})
    monkeypatch.setenv("GOMP_CPU_AFFINITY", of_the_worker)
    expected = pytest.raises(OSError, match=why) if why else contextlib.nullcontext()
    ours, theirs = socket.socketpair()
    with ours, theirs, expected:
        Forks("core", ours, environment).check()


@pytest.mark.parametrize("worker", ["forked", "spawned"])
@pytest.mark.parametrize("killed", ["stub", "fork server", "engine core"])
def test_nothing_is_orphaned(tmp_path: Path, killed: str, worker: str) -> None:
    """Whoever dies takes along what it has started, or has asked for."""
    variables = {} if worker == "forked" else {"PRELOADED": "changed by the engine core"}
    code = f"""
process, told = start(core, {variables})
engine_core, worker, (parent, *_) = told.recv()
assert parent == (engine_core if {variables} else server._process.pid)
show(os.getpid(), server._process.pid, engine_core, worker)
time.sleep(600)
"""
    stub = Stub(tmp_path, code)
    pids = dict(zip(["stub", "fork server", "engine core", "worker"], stub.numbers(), strict=True))
    assert not ends_within(pids["worker"], 1)
    os.kill(pids[killed], signal.SIGKILL)
    below = list(pids)[list(pids).index(killed) :]
    assert [True] * len(below) == [ends_within(pids[name], END_SECONDS) for name in below]
    stub.kill()


def test_a_fork_server_that_imports_dies_with_the_stub(tmp_path: Path) -> None:
    """Before it can answer anybody, too."""
    stub = Stub(tmp_path, "show(server._process.pid)\ntime.sleep(600)\n", "hangs")
    (fork_server,) = stub.numbers()
    assert not ends_within(fork_server, 1)
    stub.kill()
    assert ends_within(fork_server, END_SECONDS)


def test_a_fork_server_that_died_is_started_again(tmp_path: Path) -> None:
    """By the next start of an engine core, which waits for it."""
    code = """
show(is_forked())
server._process.kill()
server._process.wait()
show(is_forked())
"""
    stub = Stub(tmp_path, code)
    printed = stub.lines()
    assert ["True", "True"] == [line for line in printed if line == "True"]
    assert "model: the fork server has ended, and is started again" in printed
    assert 3 == stub.imports()


@pytest.mark.parametrize(
    ("imports", "change", "why"),
    [
        ("fails", "", "ImportError: no such library"),
        ("", "PRELOADED", "the fork server has other values of PRELOADED"),
        ("sets", "LIBRARY", "the fork server has other values of LIBRARY"),
    ],
    ids=["its import fails", "the stub changes a variable", "and one that the import sets"],
)
def test_an_engine_core_is_spawned_where_it_cannot_be_forked(
    tmp_path: Path, imports: str, change: str, why: str
) -> None:
    """With one line in the log; the fork server, of no use, holds no memory."""
    code = f"""
os.environ["TRITON_VLLM_IMPORT"] = ""
if {change!r}:
    os.environ[{change!r}] = "changed"
show(is_forked(), is_forked(), server._process.wait(30) is not None)
"""
    *log, forked = Stub(tmp_path, code, imports).lines()
    assert "False False True" == forked
    assert f"model: EngineCore imports vLLM on its own: {why}" in log


def test_a_fork_server_that_dies_in_its_imports_is_tried_again(tmp_path: Path) -> None:
    """By the next start; the one that has waited for it spawns."""
    code = """
os.environ["TRITON_VLLM_IMPORT"] = ""
show(is_forked(), is_forked())
"""
    *log, forked = Stub(tmp_path, code, "dies").lines()
    assert "False True" == forked
    assert "model: EngineCore imports vLLM on its own: EOFError: the fork server has died" in log


def test_an_unload_does_not_wait_for_the_imports(tmp_path: Path) -> None:
    """A start that waits for them fails, and no engine core is started."""
    code = """
threading.Timer(0.5, server.close).start()
try:
    start(say)
except UnavailableError as error:
    show(error)
server.stop()
show(server._process.poll())
"""
    assert ["the model is being unloaded", "-9"] == Stub(tmp_path, code, "hangs").lines()


def test_another_context_than_spawns_is_left_alone(tmp_path: Path) -> None:
    """Where the operator has VLLM_WORKER_MULTIPROC_METHOD=fork."""
    code = """
fork = multiprocessing.get_context("fork")
show(server.context(fork) is fork)
"""
    assert "True" == Stub(tmp_path, code).lines()[-1]


def test_engine_variables_are_those_of_vllm_for_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that the loader has to load first, in vLLM's order; none for a GPU's torch."""
    for file in ("torch/__init__.py", "torch/lib/libgomp.so.1"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", "/lib/libother.so")
    monkeypatch.setattr(preload, "version", {"torch": "2.13.0+cpu"}.__getitem__)
    expected = f"/lib/libother.so:{tmp_path}/torch/lib/libgomp.so.1"
    assert expected == preload.engine_variables()["LD_PRELOAD"]
    monkeypatch.setattr(preload, "version", {"torch": "2.13.0+cu130"}.__getitem__)
    assert {} == preload.engine_variables()


@pytest.mark.parametrize(
    ("torch", "compiler", "given", "expected"),
    [
        ("2.13.0+cpu", None, None, "1"),
        ("2.13.0+cpu", "/usr/bin/g++", None, None),
        ("2.13.0+cu130", None, None, None),
        ("2.13.0+cpu", None, "0", "0"),
    ],
    ids=["none", "a compiler", "for GPUs", "the operator's choice"],
)
def test_on_a_cpu_without_a_compiler_torch_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    compiler: str | None,
    given: str | None,
    expected: str | None,
) -> None:
    """A request would be the first to need a compiled function, and the engine would die of it."""
    monkeypatch.setattr(preload, "version", {"torch": torch}.__getitem__)
    monkeypatch.setattr(shutil, "which", {"clang++": compiler}.__getitem__)
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", given or "")
    if given is None:
        monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    assert preload.compile_nothing_without_a_compiler() is (expected == "1")
    assert expected == os.environ.get("TORCHDYNAMO_DISABLE")

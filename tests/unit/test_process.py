"""What the stub process needs before anything heavy is imported or forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from triton_vllm.topology import child_process

END_SECONDS = 30  # for what takes milliseconds, where a machine is busy
PACKAGE = Path(__file__).resolve().parents[2] / "model_repository/vllm/1"

PARENT = """
import multiprocessing, sys, time
from triton_vllm.topology.stub_process import prepare_process
prepare_process()
child = multiprocessing.get_context(sys.argv[1]).Process(target=time.sleep, args=(60,))
child.start()
print(child.pid, flush=True)
time.sleep(60)
"""


CORE = """
import contextlib, multiprocessing, threading, time

def core(stub):
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(stub, theirs))

    def start():  # as vLLM 0.33 does for several workers
        worker.start()
        stub.send(worker.pid)
        ours.recv()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(60)

def work(stub, core):
    with contextlib.suppress(BrokenPipeError):
        stub.send("running")
    core.send("running")
    time.sleep(60)
"""

STUB = """
import multiprocessing, time
from engine_core import core
from triton_vllm.topology.stub_process import prepare_process
prepare_process()
workers, theirs = multiprocessing.Pipe()
multiprocessing.get_context("spawn").Process(target=core, args=(theirs,)).start()
print(workers.recv(), flush=True)
print(workers.recv(), flush=True)
time.sleep(60)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def ends_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = Path(f"/proc/{pid}/stat")
        try:
            if ") Z " in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_engine_dies_with_the_stub(method: str) -> None:
    """When the stub is killed outright, the kernel kills what it started, in either way."""
    with start(PARENT, method) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not ends_within(child, 1)
        parent.send_signal(signal.SIGKILL)
        assert ends_within(child, END_SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("running", [True, False], ids=["running", "starting"])
def test_a_worker_dies_with_the_engine_core(tmp_path: Path, running: bool) -> None:
    """It is not the stub's child, and dies all the same: at once, or as soon as it has started.

    But not with the thread that has started it, which Linux takes for the parent.
    """
    (tmp_path / "engine_core.py").write_text(CORE)
    environment = os.environ | {"PYTHONPATH": f"{PACKAGE}:{tmp_path}"}
    command = [sys.executable, "-c", STUB]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as stub:
        assert stub.stdout is not None
        worker = int(stub.stdout.readline())
        if running:
            assert "running\n" == stub.stdout.readline()
            assert not ends_within(worker, 1)
        stub.send_signal(signal.SIGKILL)
        assert ends_within(worker, END_SECONDS)


SERVER = """
import subprocess, sys, time
with subprocess.Popen([sys.executable, "-c", sys.argv[1], "spawn"], stdout=subprocess.PIPE) as stub:
    print(stub.pid, int(stub.stdout.readline()), flush=True)
    time.sleep(60)
"""


def test_a_stub_does_not_outlive_the_server() -> None:
    """One that hangs, as Triton's own may when its server dies, is ended, and what it started."""
    with start(SERVER, PARENT) as server:
        assert server.stdout is not None
        stub, engine = map(int, server.stdout.readline().split())
        time.sleep(1)  # the engine has got to its work
        os.kill(stub, signal.SIGSTOP)
        assert not ends_within(engine, 1)
        server.kill()
        assert ends_within(stub, END_SECONDS)
        assert ends_within(engine, END_SECONDS)


FOLLOWER = """
import sys, time
from pathlib import Path
from triton_vllm.topology.front_ends import FrontEndSlot
slot = FrontEndSlot.claim(Path(sys.argv[1]).parent, 2)
print(slot.cohort, flush=True)
time.sleep(60)
"""

LEADER = """
import os, subprocess, sys, time
from triton_vllm.topology import child_process
watch = "from triton_vllm.topology import child_process as c; c.die_with_stub(); "
watch += "c.end_stubs_with_server(); import time; print('watching', flush=True); time.sleep(60)"
os.environ[child_process.STUB_PID] = str(os.getpid())
os.environ[child_process.SERVER_PID] = sys.argv[1]
os.environ[child_process.ERRORS] = sys.argv[2]
subprocess.Popen([sys.executable, "-c", watch])
time.sleep(60)
"""


def test_a_front_end_that_hangs_is_ended_although_the_leader_has_left(tmp_path: Path) -> None:
    """The engine, which watches the server, ends with its leader, before the time has come."""
    with (
        start("import time; time.sleep(60)") as server,
        start(FOLLOWER, str(tmp_path / "x")) as follower,
    ):
        assert follower.stdout is not None
        cohort = follower.stdout.readline().strip()
        with start(LEADER, str(server.pid), f"{cohort}/errors.jsonl") as leader:
            assert leader.stdout is not None
            assert "watching\n" == leader.stdout.readline()
            os.kill(follower.pid, signal.SIGSTOP)
            server.kill()
            time.sleep(1)  # the engine has noticed
            leader.kill()
            assert ends_within(follower.pid, END_SECONDS)


@pytest.mark.parametrize("held", [True, False], ids=["held", "left"])
def test_front_ends_that_share_the_engine_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """By the slots that they hold, not by those that somebody has left."""
    with start(FOLLOWER, str(tmp_path / "x")) as stub:
        assert stub.stdout is not None
        cohort = Path(stub.stdout.readline().strip())
        monkeypatch.setenv(child_process.ERRORS, str(cohort / "errors.jsonl"))
        if not held:
            stub.kill()
            stub.wait()
        assert ([stub.pid] if held else []) == child_process._other_stubs()
        stub.kill()


def test_the_locale_is_utf_8() -> None:
    """Files without a stated encoding are read as UTF-8, even where Python started as C."""
    code = (
        "import locale\n"
        "from triton_vllm.topology.stub_process import prepare_process\n"
        "prepare_process()\n"
        "print(locale.setlocale(locale.LC_CTYPE))\n"
    )
    with start(code) as process:
        assert process.stdout is not None
        assert "C.UTF-8" == process.stdout.read().strip()


def test_a_stuck_stub_can_be_asked_where_it_stands() -> None:
    """SIGUSR1 writes every thread's stack to standard error, and ends nothing."""
    code = """
import os, signal
from triton_vllm.topology.stub_process import prepare_process
prepare_process()
def stuck():
    os.kill(os.getpid(), signal.SIGUSR1)
stuck()
print("alive")
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "alive\n" == done.stdout
    assert "in stuck" in done.stderr


def test_a_stub_whose_model_is_finalized_leaves_no_core_dump() -> None:
    """Triton 26.04 and newer abort it; one that aborts before is dumped as the operator likes."""
    code = (
        "import ctypes, os, sys\n"
        "from triton_vllm.topology.stub_process import leave_no_core_dump\n"
        "if sys.argv[1:]:\n"
        "    leave_no_core_dump()\n"
        "print(ctypes.CDLL(None).prctl(3), flush=True)\n"  # PR_GET_DUMPABLE
    )
    found = []
    for arguments in [], ["finalized"]:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={"PYTHONPATH": str(PACKAGE)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found.append(done.stdout.strip())
    assert ["1", "0"] == found

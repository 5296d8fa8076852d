"""Runs first in each process that the stub starts.

- It asks Linux to kill the process when the stub dies. A killed stub cannot stop its engine,
  and the engine would keep the GPU.
- It does not let the process's children die with the thread that started them.
- It kills stubs that outlive tritonserver.
- It records the errors that the process logs. vLLM tells the stub only that an engine did not start
  or died, not why.

multiprocessing runs this file by its path as the main module of a spawned process, so it imports
the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from multiprocessing import util
from pathlib import Path
from typing import Any

STUB_PID = "TRITON_VLLM_STUB_PID"
SERVER_PID = "TRITON_VLLM_SERVER_PID"
ERRORS = "TRITON_VLLM_ERRORS"  # path of the file with the errors
# Process ids, in what the fork server forks (fork_server.py): its own, and of what asked for it.
FORK_SERVER = "TRITON_VLLM_FORK_SERVER"
ASKED_BY = "TRITON_VLLM_ASKED_BY"
_MOST = 1_000_000  # bytes of that file; then older errors are dropped
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_LEAVE_SECONDS = 3.0  # for a stub to exit after tritonserver


def die_with_stub() -> None:
    """Set the parent-death signal to SIGKILL, if the parent is the stub or a child of the stub.

    A worker is a child of the engine core. Without the signal it takes seconds to notice a dead
    parent. Exits at once if the stub is no ancestor any more: the stub or the core died while this
    process was starting. What asked a fork server for this process counts as its parent: the fork
    server is killed with the stub, and kills what an engine core has asked for when that ends.
    """
    stub = int(os.environ.get(STUB_PID, "0"))
    if not stub:
        return
    parent = os.getppid()
    line = _line(parent)
    if stub in line[:2]:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if stub not in line or os.getppid() != parent:  # it died before the signal was set
        os._exit(1)


def _line(pid: int) -> list[int]:
    """Return a process and its ancestors, the nearest first.

    In place of the fork server stands what asked it for this process.
    """
    fork_server, asked_by = (int(os.environ.get(name, "0")) for name in (FORK_SERVER, ASKED_BY))
    line = []
    while pid:
        if pid != fork_server:
            line.append(pid)
        elif asked_by:
            pid, asked_by = asked_by, 0  # once, as the engine core's own parent is it again
            continue
        pid = _parent_of(pid)
    return line


def _parent_of(pid: int) -> int:
    """Return a process's parent (proc(5), field 4); 0 if there is none or the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:  # noqa: PTH123
            return int(stat.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def start_children_from_lasting_threads() -> None:
    """Have ``multiprocessing`` start no child from a thread that may end before this process.

    For the parent-death signal Linux takes that thread for the parent. vLLM 0.33 starts several
    workers from threads that end when all have been started.
    """
    threads = futures.ThreadPoolExecutor(1, "start-children")
    spawn = util.spawnv_passfds

    def spawn_from_lasting_thread(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if threading.current_thread() is threading.main_thread():
            return spawn(path, args, passfds)
        return threads.submit(spawn, path, args, passfds).result()

    util.spawnv_passfds = spawn_from_lasting_thread


def end_stubs_with_server() -> None:
    """Watch tritonserver, if this is a child of the stub; kill stubs that outlive it by seconds.

    A stub notices that its server was killed. In Triton 24.10 it then hangs if it was writing a
    metric or a log line: that thread waits for the server's answer and holds a lock that the
    noticing thread needs.
    """
    stub, server = (int(os.environ.get(name, "0")) for name in (STUB_PID, SERVER_PID))
    if server and [stub] == _line(os.getppid())[:1]:
        threading.Thread(
            target=_end_stubs_with, args=(server, stub), name="server-end", daemon=True
        ).start()


def _end_stubs_with(server: int, stub: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has gone already
        select.select([os.pidfd_open(server)], [], [])
    # By a process of its own, since this one ends with its stub, and the other stubs may hang.
    stubs = " ".join(map(str, (*_other_stubs(), stub)))
    subprocess.Popen(  # noqa: S602 - process ids only
        f"sleep {_LEAVE_SECONDS}; kill -KILL {stubs}", shell=True, stderr=subprocess.DEVNULL
    )


def _other_stubs() -> list[int]:
    """Return the other front ends of the engine: those that hold a slot (front_ends.py)."""
    found = []
    for slot in Path(os.environ.get(ERRORS, "")).parent.glob("slot-*"):
        with contextlib.suppress(FileNotFoundError, ValueError), slot.open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it is alive
                found.append(int(file.read()))
    return found


def write_down_errors() -> None:
    """Append each exception that is logged as an error to the file, if it exists.

    A line of JSON: seconds since the epoch, and the text.
    """
    make = logging.getLogRecordFactory()

    def make_and_look(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            try:
                path = os.environ[ERRORS]
                mode = "r+" if os.stat(path).st_size > _MOST else "a"  # noqa: PTH116
                with open(path, mode, encoding="utf-8") as file:  # noqa: PTH123
                    if mode == "r+":
                        file.truncate()
                    text = f"{type(error).__name__}: {error}"[:2000]
                    file.write(json.dumps([time.time(), text]) + "\n")
            except (OSError, KeyError):
                pass  # there is no such file
        return record

    logging.setLogRecordFactory(make_and_look)


if __name__ == "__main__":  # followed by the command line of a program that is not Python's
    die_with_stub()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 (no shell)

if __name__ == "__mp_main__":
    die_with_stub()
    start_children_from_lasting_threads()
    end_stubs_with_server()
    write_down_errors()

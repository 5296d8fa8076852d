"""The fork server: imports what engine cores import, then forks one of itself for each.

The stub runs it (fork_server.py) with two arguments, a socket's descriptor and a module. It answers
on the socket with one line of JSON: the environment that the module's import has left, or why it
cannot be used. From then on each message there asks for a child. With it come descriptors: a pipe
with what ``multiprocessing`` sends to a process that it spawns, and one to write the child's id and
exit code. No thread is started here, as forks need it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker, spawn
from typing import Any, NoReturn

from triton_vllm.topology import child_process

LENGTH = struct.Struct("!Q")
_MOST_DESCRIPTORS = 200  # in one message; Linux allows 253
# The engine core answers these; without the fork server it would die first.
_IGNORED: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
AfterFork = Callable[[bool], None]


def main() -> None:
    """Import, answer, and serve until the stub closes the socket."""
    descriptor, module = sys.argv[1:3]
    child_process.die_with_stub()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    began = time.monotonic()
    with socket.socket(fileno=int(descriptor)) as channel:
        try:
            after_fork = importlib.import_module(module).after_fork
        except Exception as error:
            answer: dict[str, object] = {"error": f"{type(error).__name__}: {error}"}
        else:
            seconds = time.monotonic() - began
            answer = {"environment": dict(os.environ), "seconds": seconds}
        channel.sendall(json.dumps(answer).encode() + b"\n")
        if "error" in answer:
            return
        os.environ[child_process.FORK_SERVER] = str(os.getpid())
        os.register_at_fork(after_in_child=child_process.die_with_stub)
        gc.collect()
        gc.freeze()  # or a child's collector would copy all pages
        _serve(channel, after_fork)


def _serve(channel: socket.socket, after_fork: AfterFork) -> None:
    statuses: dict[int, tuple[int, int]] = {}  # of each child's pidfd: its id, and where to tell
    while True:
        ready, _, _ = select.select([channel, *statuses], [], [])
        for pidfd in statuses.keys() & set(ready):
            _report(pidfd, *statuses.pop(pidfd))
        if channel not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(channel, 1, _MOST_DESCRIPTORS)
        if not message:
            return
        data, status, *inherited = descriptors
        with contextlib.suppress(OSError):  # no process is left; the stub reads an end of file
            pid = os.fork()
            if not pid:
                others = (fd for pidfd, (_, told) in statuses.items() for fd in (pidfd, told))
                _be_child(data, inherited, [channel.detach(), status, *others], after_fork)
            statuses[os.pidfd_open(pid)] = pid, os.dup(status)
            forkserver.write_signed(status, pid)
        for given in descriptors:
            os.close(given)


def _report(pidfd: int, pid: int, status: int) -> None:
    """Write the exit code of a child that has ended."""
    _, how = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # nobody waits for it
        forkserver.write_signed(status, os.waitstatus_to_exitcode(how))
    os.close(status)
    os.close(pidfd)


def _be_child(
    data: int, inherited: list[int], others: list[int], after_fork: AfterFork
) -> NoReturn:
    """Be the process that the stub has asked for, to its end."""
    code = 1
    try:
        for descriptor in others:
            os.close(descriptor)
        for number, handler in _IGNORED.items():
            signal.signal(number, handler)
        _take_over(json.loads(_read(data, *LENGTH.unpack(_read(data, LENGTH.size)))), after_fork)
        tracker, *forkserver._forkserver._inherited_fds = inherited  # type: ignore[attr-defined]
        resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
        code = spawn._main(data, os.dup(data))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _take_over(launch: dict[str, Any], after_fork: AfterFork) -> None:
    """Take the environment and the CPUs of the thread that launches, as a new process would."""
    fork_server = os.environ[child_process.FORK_SERVER]
    os.environ.clear()
    os.environ.update(launch["environment"] | {child_process.FORK_SERVER: fork_server})
    moves = set(launch["cpus"]) != os.sched_getaffinity(0)
    os.sched_setaffinity(0, launch["cpus"])
    after_fork(moves)


def _read(descriptor: int, size: int) -> bytes:
    """Read so many bytes, and none of what follows."""
    read = b""
    while len(read) < size:
        part = os.read(descriptor, size - len(read))
        if not part:
            raise EOFError("the stub has ended")
        read += part
    return read

"""The fork server: imports what engine cores import, then forks one of itself for each process.

The stub runs it (fork_server.py) with two arguments, a socket's descriptor and a module. It answers
on the socket with one line of JSON: the environment that the module's import has left, or why it
cannot be used. From then on each message there asks for a child, and says which process asks. With
it come descriptors: a pipe with what ``multiprocessing`` sends to a process that it spawns, and one
to write the child's id and exit code. The children may ask for children, on another socket, as an
engine core does for its workers. These are killed when it ends: Linux would do that only for a real
parent. No thread is started here, as forks need it.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, spawn
from typing import Any, NoReturn

from triton_vllm.topology import child_process

LENGTH = struct.Struct("!Q")
_MOST_DESCRIPTORS = 200  # in one message; Linux allows 253
_LONGEST = 20  # message: a process id
# The engine core answers these; without the fork server it would die first.
_IGNORED: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@dataclass(frozen=True, slots=True)
class Start:
    """How a child starts: the ``channel`` where it may ask for children of its own.

    ``moves``: to other CPUs than the fork server's, whose environment is ``environment``.
    """

    channel: socket.socket
    environment: Mapping[str, str]
    moves: bool


@dataclass(frozen=True, slots=True)
class _Child:
    """What the fork server keeps of a child: ``status`` is where to tell how it has ended."""

    pid: int
    asked_by: int
    status: int


def main() -> None:
    """Import, answer, and serve until the stub closes the socket and all children have ended."""
    descriptor, module = sys.argv[1:3]
    child_process.die_with_stub()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    began = time.monotonic()
    gc.disable()  # as in engine/load.py
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
        gc.enable()
        _Server(channel, after_fork).serve()


class _Server:
    """The children, and the two sockets on which the stub and they ask for more."""

    def __init__(self, stub: socket.socket, after_fork: Callable[[Start], None]) -> None:
        self._stub = stub
        self._stub_pid = os.getppid()
        self._asked, self._ask = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._after_fork = after_fork
        self._children: dict[int, _Child] = {}  # by pidfd

    def serve(self) -> None:
        """Fork and report, until the stub wants no more and all children have ended."""
        sockets = {self._stub, self._asked}
        while self._stub in sockets or self._children:
            ready, _, _ = select.select([*sockets, *self._children], [], [])
            for pidfd in self._children.keys() & set(ready):
                self._report(self._children.pop(pidfd))
                os.close(pidfd)
            for channel in sockets & set(ready):
                if not self._answer(channel):
                    sockets.discard(channel)

    def _report(self, child: _Child) -> None:
        """Write the exit code of a child that has ended, and kill those that it has asked for."""
        for other in self._children.values():
            if other.asked_by == child.pid:
                os.kill(other.pid, signal.SIGKILL)
        _, how = os.waitpid(child.pid, 0)
        with contextlib.suppress(OSError):  # nobody waits for it
            forkserver.write_signed(child.status, os.waitstatus_to_exitcode(how))
        os.close(child.status)

    def _answer(self, channel: socket.socket) -> bool:
        """Fork a child for a process that asks; return whether there was a message."""
        message, descriptors, _, _ = socket.recv_fds(channel, _LONGEST, _MOST_DESCRIPTORS)
        asked_by = int(message or 0)
        if asked_by in {self._stub_pid, *(child.pid for child in self._children.values())}:
            data, status, *inherited = descriptors
            with contextlib.suppress(OSError):  # no process is left; the asking one reads no id
                pid = os.fork()
                if not pid:
                    self._be_child(asked_by, data, status, inherited)
                self._children[os.pidfd_open(pid)] = _Child(pid, asked_by, os.dup(status))
                forkserver.write_signed(status, pid)
        for given in descriptors:
            os.close(given)
        return bool(message)

    def _be_child(self, asked_by: int, data: int, status: int, inherited: list[int]) -> NoReturn:
        """Be the process that was asked for, to its end."""
        code = 1
        try:
            others = [fd for pidfd, other in self._children.items() for fd in (pidfd, other.status)]
            for descriptor in (self._stub.detach(), self._asked.detach(), status, *others):
                os.close(descriptor)
            for number, handler in _IGNORED.items():
                signal.signal(number, handler)
            launch = json.loads(_read(data, *LENGTH.unpack(_read(data, LENGTH.size))))
            self._after_fork(_take_over(launch, asked_by, self._ask))
            tracker, *forkserver._forkserver._inherited_fds = inherited  # type: ignore[attr-defined]
            resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
            code = spawn._main(data, os.dup(data))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)


def _take_over(launch: dict[str, Any], asked_by: int, channel: socket.socket) -> Start:
    """Take the environment and the CPUs of the thread that launches, as a new process would."""
    left = dict(os.environ)
    os.environ.clear()
    os.environ.update(launch["environment"])
    os.environ[child_process.FORK_SERVER] = left[child_process.FORK_SERVER]
    os.environ[child_process.ASKED_BY] = str(asked_by)
    moves = set(launch["cpus"]) != os.sched_getaffinity(0)
    os.sched_setaffinity(0, launch["cpus"])
    return Start(channel, left, moves)


def _read(descriptor: int, size: int) -> bytes:
    """Read so many bytes, and none of what follows."""
    read = b""
    while len(read) < size:
        part = os.read(descriptor, size - len(read))
        if not part:
            raise EOFError("the process that asked has ended")
        read += part
    return read

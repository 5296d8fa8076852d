"""The processes of servers under test, and their ports."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

# A server has a process group of its own, by which its whole process tree is known, orphans
# included. Not a session of its own: Linux schedules each as a group (autogroup), and then an
# engine that takes all cores kept this process from running for up to a minute (Linux 6.18).
OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now, and never the same one twice.

    From below those that Linux gives to outgoing connections (32768 and up): a server takes its
    port only when its models are loaded, a minute later. The workers of pytest-xdist draw from
    different ports.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = _UNUSED_PORTS.pop()
        with socket.socket() as held, contextlib.suppress(OSError):
            held.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def _ports_of_this_worker() -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(12_000, 32_000)[worker::workers]
    return random.sample(ports, len(ports))


_UNUSED_PORTS = _ports_of_this_worker()


def group_of(leader: int) -> Iterator[psutil.Process]:
    """Yield the live processes of a process group."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def title_of(process: psutil.Process) -> str:
    """Return a process's command line, empty if it has ended."""
    try:
        return " ".join(process.cmdline()) or str(process.name())
    except psutil.Error:
        return ""


def kill_stub(stub: psutil.Process) -> None:
    """Kill a front end that has had a moment of rest.

    One that dies inside a lock of Triton's shared memory takes tritonserver 24.10 along.
    """
    time.sleep(1)
    stub.send_signal(signal.SIGKILL)

"""A process for work whose duration a client decides: it is killed when a job takes too long."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from triton_vllm.errors import UnavailableError, one_line

TOO_MUCH_MEMORY = "takes too much memory"
_MEMORY = 4 << 30  # bytes of address space, above what the process has when it is ready
_START_SECONDS = 300.0
_END_SECONDS = 1.0
_POLL_SECONDS = 0.2  # between two looks whether the model is being unloaded
_PATIENCE = 10  # times the limit, on a machine too busy to let the process work
_LEAST_PATIENCE = 5.0  # seconds: a short limit says nothing of how long a process waits for a core

Job = Any
Prepare = Callable[..., Callable[[Job], Any]]


class JobError(Exception):
    """A job that failed, or was killed: why."""


class Sandbox:
    """Runs one job after the other in a process of its own.

    ``prepare`` runs in the process, with ``arguments``, and returns the function that does a job.
    The kernel counts the processor time of all the process's threads (``ITIMER_PROF``) and kills it
    with SIGPROF after ``seconds``: a machine that stands still proves nothing about a job.
    One thread calls ``start`` and ``run`` and outlives the process: Linux ends the process with the
    thread that started it (child_process.py). Both raise UnavailableError soon after ``stopping``
    is set.
    """

    def __init__(
        self,
        prepare: Prepare,
        arguments: tuple[Any, ...],
        seconds: float,
        stopping: threading.Event,
        memory: int = _MEMORY,
    ) -> None:
        """Give each job ``seconds``, and ``memory`` bytes."""
        self._start_with = (prepare, arguments, seconds, memory)
        self._seconds = seconds
        self._stopping = stopping
        self._process: Any = None
        self._connection: Any = None

    def run(self, job: Job) -> Any:
        """Return the job's result. Whatever goes wrong, the next job has a new process.

        Raises JobError if the job failed, UnavailableError if there is no process or the machine is
        too busy.
        """
        try:
            self.start()
            done, result = self._answer_to(job)
            if not done:
                raise JobError(result)
        except (JobError, UnavailableError):
            self.end()
            raise
        return result

    def start(self) -> None:
        """Start the process if there is none, or none any more. Raises UnavailableError."""
        if self._process is not None and self._process.is_alive():
            return
        self.end()
        try:
            self._spawn()
            self._receive(_START_SECONDS)
        except (EOFError, OSError) as error:
            why = one_line(error)
        else:
            return
        # Not as the error's cause: its traceback would hold descriptors of multiprocessing's.
        raise UnavailableError(f"no sandbox process: {why}")

    def _spawn(self) -> None:
        # Spawned: it dies with this process (child_process.py), as the engine does.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, *self._start_with), name="sandbox", daemon=True
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._connection = process, ours

    def _answer_to(self, job: Job) -> tuple[bool, Any]:
        """Return whether the job was done, and its result or why it failed."""
        try:
            self._connection.send(job)
            return self._receive(max(self._seconds * _PATIENCE, _LEAST_PATIENCE))
        except (EOFError, OSError):
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
        if code == -signal.SIGPROF:
            raise JobError(f"takes longer than {self._seconds:g} s, the limit")
        raise JobError(f"ended its process (exit code {code})")

    def _receive(self, patience: float) -> tuple[bool, Any]:
        until = time.monotonic() + patience
        while not self._connection.poll(_POLL_SECONDS):
            if self._stopping.is_set():
                raise UnavailableError("the model is being unloaded")
            if time.monotonic() >= until:
                raise UnavailableError(f"the machine is too busy: nothing came in {patience:g} s")
        answer: tuple[bool, Any] = self._connection.recv()
        return answer

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._connection.close()
            self._process = None


def serve(
    connection: Connection,
    prepare: Prepare,
    arguments: tuple[Any, ...],
    seconds: float,
    memory: int,
) -> None:
    """Do the jobs that come until the other end closes. Runs in the process."""
    # A child inherits what its parent ignores and blocks.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    do = prepare(*arguments)
    _limit_memory(memory)
    connection.send((True, None))  # ready
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = True, do(job)
        except MemoryError:
            answer = False, TOO_MUCH_MEMORY
        except JobError as error:
            answer = False, str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)


def _limit_memory(more: int) -> None:
    """Let the process take ``more`` bytes of address space than it has, torch's and its own."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))

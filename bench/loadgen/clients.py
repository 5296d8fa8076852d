"""The client processes, which start once and run one load after the other."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any

from loadgen import client_process
from loadgen.load import ClientError, Load, Outcome

_READY_SECONDS = 120.0  # to encode the requests and to connect
_START_DELAY = 0.05  # so that all processes have read the time at which they start
_TICK = 0.2

Progress = Callable[[int], None]


class Clients:
    """Client processes. Use as a context manager; leaving it ends them."""

    def __init__(self, processes: int) -> None:
        """Start ``processes`` of them."""
        self._number = processes
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # no threads or connections are inherited
        self._done: Any = context.RawArray("L", self._number)
        self._pipes: list[Pipe] = []
        self._processes = []
        for index in range(self._number):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=client_process.main, args=(theirs, self._done, index), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def _end(self, seconds: float) -> None:
        for pipe in self._pipes:
            pipe.close()  # they end when they have nothing to read from
        for process in self._processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end(0 if exception[0] else 5)

    def run(self, load: Load, progress: Progress = lambda _: None) -> list[Outcome]:
        """Run a load, spread over the processes; return the outcome of each.

        ``progress`` is called now and then with the number of requests that have ended. Raises
        ClientError, or OSError where the server does not answer at all.
        """
        try:
            return self._run(load, progress)
        except (ClientError, OSError):
            self._end(0)  # some may be in the middle of it
            self._start()
            raise

    def _run(self, load: Load, progress: Progress) -> list[Outcome]:
        parts = list(zip(self._pipes, _parts(load, len(self._pipes)), strict=False))
        pipes = [pipe for pipe, _ in parts]
        for pipe, part in parts:
            pipe.send(part)
        list(_receive(pipes, _READY_SECONDS, progress=lambda: None))
        start = time.monotonic() + _START_DELAY
        for pipe in pipes:
            pipe.send(start)
        limit = load.seconds + load.patience + 30
        outcomes = list(_receive(pipes, limit, lambda: progress(sum(self._done))))
        progress(sum(self._done))
        return outcomes


def _parts(load: Load, processes: int) -> Iterator[Load]:
    """Divide streams, requests and rate among processes so that each has a stream at least."""
    processes = min(processes, load.streams, len(load.prompts))
    for i in range(processes):
        yield replace(
            load,
            prompts=load.prompts[i::processes],
            streams=len(range(i, load.streams, processes)),
            rate=load.rate / processes,
            seed=load.seed * 1000 + i,
        )


def _receive(pipes: Sequence[Pipe], seconds: float, progress: Callable[[], None]) -> Iterator[Any]:
    """Yield what comes from each pipe. Raises what a process sends as its error."""
    deadline = time.monotonic() + seconds
    waiting = set(pipes)
    while waiting:
        for pipe in wait(list(waiting), timeout=_TICK):
            assert isinstance(pipe, Pipe)
            answer: Any = ClientError("a client process died")
            with contextlib.suppress(EOFError):
                answer = pipe.recv()
            if isinstance(answer, Exception):
                raise answer
            waiting.discard(pipe)
            yield answer
        progress()
        if waiting and time.monotonic() > deadline:
            raise ClientError(f"{len(waiting)} client processes have not answered in {seconds} s")

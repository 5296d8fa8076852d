"""One client process: takes loads from a pipe, runs each, and returns the outcome."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import signal
import time
from array import array
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import Any, Protocol

from loadgen.load import ClientError, Load, Outcome, Prompt, Record, RequestFailed, Target


class Connection(Protocol):
    """A connection to a server, with one request at a time."""

    async def ask(self, request: bytes, record: Record) -> None:
        """Send an encoded request and note its answer. Raises RequestFailed."""

    def close(self) -> None:
        """Close it."""


class Transport:
    """Encodes and connects for the target's protocol. Imports only what that needs."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._channel: Any = None
        if target.protocol == "triton-grpc":
            from loadgen import grpc_stream

            self._encode = grpc_stream.encode
            self._channel = grpc_stream.Channel(target)
        else:
            from loadgen import http

            self._encode = http.encode
            self._open_http = http.HttpConnection.open

    def encode(self, prompt: Prompt) -> bytes:
        """Return a request's bytes."""
        return self._encode(self._target, prompt)

    async def open(self) -> Connection:
        """Return a new connection. Raises OSError if there is no server."""
        if self._channel is not None:
            stream: Connection = self._channel.stream()
            return stream
        connection: Connection = await self._open_http(self._target)
        return connection

    async def close(self) -> None:
        """Close what all connections share."""
        if self._channel is not None:
            await self._channel.close()


class Client:
    """One process's part of a load."""

    def __init__(self, load: Load, done: Any, index: int) -> None:
        """``done[index]`` counts the requests that ended, for the parent to see."""
        self._load = load
        self._done = done
        self._index = index
        self._records: list[Record] = []
        self._free: list[Connection] = []

    async def run(self, pipe: Pipe) -> Outcome:
        """Connect, report it, wait for the common start, and send."""
        self._transport = Transport(self._load.target)
        try:
            self._requests = [self._transport.encode(p) for p in self._load.prompts]
            if not self._load.rate:
                self._free = [await self._transport.open() for _ in range(self._load.streams)]
            pipe.send("ready")
            start = await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            return await self._measure(start)
        finally:
            for connection in self._free:
                connection.close()
            await self._transport.close()

    async def _measure(self, start: float) -> Outcome:
        await asyncio.sleep(start - time.monotonic())
        used, begin = _cpu_seconds(), time.monotonic()
        end = start + self._load.seconds
        if self._load.rate:
            work = [self._open_loop(start, end)]
        else:
            numbered = iter(enumerate(self._requests))
            work = [self._worker(c, numbered, end) for c in self._free]
        tasks = [asyncio.create_task(each) for each in work]
        late = end + self._load.patience - time.monotonic()
        _, unfinished = await asyncio.wait(tasks, timeout=late)
        for task in unfinished:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        seconds = time.monotonic() - begin
        return Outcome(tuple(self._records), _cpu_seconds() - used, seconds)

    async def _worker(
        self, connection: Connection, numbered: Iterator[tuple[int, bytes]], end: float
    ) -> None:
        """Closed loop: send one request after the other."""
        for number, request in numbered:
            if (now := time.monotonic()) >= end:
                return
            connection = await self._ask(connection, number, request, now)

    async def _open_loop(self, start: float, end: float) -> None:
        """Open loop: send each request when it is due, whether or not others have ended."""
        room = asyncio.Semaphore(self._load.streams)
        tasks = []
        arrivals = _arrivals(self._load, start)
        for (number, request), due in zip(enumerate(self._requests), arrivals, strict=False):
            if due >= end:
                break
            await asyncio.sleep(due - time.monotonic())
            await room.acquire()
            tasks.append(asyncio.create_task(self._ask_once(number, request, due, room)))
        await asyncio.gather(*tasks)

    async def _ask_once(
        self, number: int, request: bytes, due: float, room: asyncio.Semaphore
    ) -> None:
        try:
            connection = self._free.pop() if self._free else await self._transport.open()
            self._free.append(await self._ask(connection, number, request, due))
        finally:
            room.release()

    async def _ask(
        self, connection: Connection, number: int, request: bytes, due: float
    ) -> Connection:
        """Send one request; return the connection for the next one, a new one after a failure."""
        record = Record(due)
        self._records.append(record)
        record.error = "not complete in time"  # unless it is overwritten
        try:
            await connection.ask(request, record)
        except RequestFailed as failure:
            record.error = str(failure)
            connection.close()
            connection = await self._transport.open()
        else:
            record.error = "" if record.times else "a complete answer without text"
            if not self._load.target.count_tokens:
                record.tokens = self._load.prompts[number].output_tokens
        record.done = time.monotonic()
        self._done[self._index] += 1
        return connection


def _arrivals(load: Load, start: float) -> Iterator[float]:
    rng = random.Random(load.seed)
    due = start
    while True:
        due += rng.expovariate(load.rate) if load.poisson else 1 / load.rate
        yield due


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(pipe: Pipe, done: array[int], index: int) -> None:
    """Run loads until the pipe is closed. The process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    gc.freeze()
    while True:
        try:
            load = pipe.recv()
        except EOFError:
            return
        done[index] = 0
        try:
            pipe.send(_run(Client(load, done, index), pipe))
        except Exception as error:
            pipe.send(error if isinstance(error, OSError) else ClientError(repr(error)))


def _run(client: Client, pipe: Pipe) -> Outcome:
    """Run a client, on uvloop if it is installed, which saves a quarter of the CPU time."""
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    outcome: Outcome = run(client.run(pipe))
    return outcome

"""How several engines of one model get their fair share of the requests that Triton hands out.

Triton gives a request to whichever instance waits for one, and ``execute`` returns at once: so it
knows nothing of their loads. Back-pressure tells it. Each front end publishes how many requests it
has; ``execute`` of an engine that is ahead of the least loaded one holds back for a moment, and
meanwhile Triton finds the others idle. The least loaded engine never holds back, so no request
waits for want of a taker.

The numbers stand in a small file in the meeting place that all front ends map, a cache line each:

    | engine + 1 | last beat | taken by execute | come and gone in the event loop |

Each number has one thread that writes it, so there are no locks. The beat is the monotonic clock,
written by an event loop that lives and whose engine takes requests; a slot whose beat stands still
counts no more, whether its process has died or hangs, or its engine is restarted or has a full
queue.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WORDS = 8  # a slot: 64 bytes, so that no two processes write to one cache line
_ENGINE, _BEAT, _TAKEN, _PASSED = range(4)

BEAT_SECONDS = 0.1
STALE_SECONDS = 1.0  # an event loop that is so late is no place for more requests
# Whatever the table says, after that the next request is taken. So an engine that is ahead still
# takes four a second through each front end: more, and long requests would not be levelled.
HOLD_SECONDS = 0.25
DOWN_SECONDS = 2.0  # the same, for a front end that can only refuse
QUEUED_SECONDS = 0.01  # a request that comes so soon after the wait had been in Triton's queue
_MANY = 8  # requests of an engine
_STEPS = (0.0002, 0.002)  # seconds between two looks at the table: at first, and at most


@dataclass(slots=True)
class Load:
    """What one engine has: requests under way, and how many ``execute`` has ever taken for it."""

    requests: int = 0
    taken: int = 0


def is_level(own: int, least: int) -> bool:
    """Return whether the next request may as well come here.

    One more is no lead where there are few. Where there are many an engine may be full, and that
    one would wait for a whole answer although there is room elsewhere.
    """
    return own <= least + (least < _MANY)


class LoadTable:
    """What the front ends of a model's engines tell each other: ``slot`` is this one's to write."""

    def __init__(self, path: Path, slots: int, slot: int, engine: int) -> None:
        """Map the file ``path``, made by whoever comes first, and sit down in it."""
        size = slots * _WORDS * 8
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # or a disk that is full would end us in a write
            self._map = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._numbers = memoryview(self._map).cast("q")
        self._own = slot * _WORDS
        self._engine = engine
        self._numbers[self._own + _ENGINE] = engine + 1

    def took(self) -> None:
        """Count a request that ``execute`` has taken. The thread of ``execute`` only."""
        self._numbers[self._own + _TAKEN] += 1

    def passed(self, change: int) -> None:
        """Count one that has ended, or come, in the event loop. Event loop only."""
        self._numbers[self._own + _PASSED] += change

    def beat(self, *, serves: bool) -> None:
        """Say that this front end lives and its engine takes requests, or not. Event loop only."""
        self._numbers[self._own + _BEAT] = time.monotonic_ns() if serves else 0

    def loads(self) -> tuple[Load | None, dict[int, Load]]:
        """Return what this front end's engine has, None if it does not serve, and the others'."""
        oldest = time.monotonic_ns() - int(STALE_SECONDS * 1e9)
        numbers = self._numbers
        engines: dict[int, Load] = {}
        for at in range(0, len(numbers), _WORDS):
            if numbers[at + _BEAT] > oldest:
                load = engines.setdefault(numbers[at + _ENGINE] - 1, Load())
                load.taken += (taken := numbers[at + _TAKEN])
                load.requests += taken + numbers[at + _PASSED]
        return engines.pop(self._engine, None), engines

    def close(self) -> None:
        """Leave the table."""
        self._numbers[self._own + _BEAT] = 0
        self._numbers.release()
        self._map.close()


@dataclass(frozen=True, slots=True)
class _Wait:
    """For an engine that has taken so many requests, so long at most."""

    engine: int
    taken: int
    seconds: float


class FairShare:
    """Keeps one front end from taking what belongs to an engine with less to do.

    A wait may be in vain: the other's ``execute`` hangs, though its event loop lives. When the next
    request comes at once after such a wait, it had been there, and the other engine has not taken
    it. Nobody waits for that one any more until it takes something.
    """

    def __init__(self, table: LoadTable) -> None:
        self._table = table
        self._in_vain: tuple[float, _Wait] | None = None  # the last wait, and when it ended
        self._unwilling: dict[int, int] = {}  # engines, and how many requests they had taken
        self.took = table.took

    def came(self) -> None:
        """Count a request that did not come through ``execute``. Event loop only."""
        self._table.passed(1)

    def ended(self) -> None:
        """Count the end of a request, wherever it came from. Event loop only."""
        self._table.passed(-1)

    def hold_back(self) -> None:
        """Sleep while this engine is ahead of another, for a moment at most.

        Called by ``execute``, during which Triton gives this front end nothing. An engine that is
        down stays away for longer: it could only refuse what another can answer.
        """
        begun = time.monotonic()
        self._judge(begun)
        step, longest = _STEPS
        first = wait = self._wait()
        while wait is not None:
            if (now := time.monotonic()) - begun >= wait.seconds:
                if wait == first:
                    self._in_vain = (now, wait)
                return
            time.sleep(step)
            step = min(2 * step, longest)
            wait = self._wait()

    def _judge(self, now: float) -> None:
        """Remember an engine that took nothing of what was there."""
        if self._in_vain is not None:
            until, wait = self._in_vain
            if now - until < QUEUED_SECONDS:
                self._unwilling[wait.engine] = wait.taken
            self._in_vain = None

    def _wait(self) -> _Wait | None:
        """Return what there is to wait for, None where there is nothing."""
        own, others = self._table.loads()
        willing = [e for e, load in others.items() if load.taken != self._unwilling.get(e)]
        if not willing:
            return None
        least = min(willing, key=lambda engine: others[engine].requests)
        if own is not None and is_level(own.requests, others[least].requests):
            return None
        return _Wait(least, others[least].taken, DOWN_SECONDS if own is None else HOLD_SECONDS)

    async def beat(self, serves: Callable[[], bool]) -> None:
        """Show the others for ever that this front end lives. A coroutine of the event loop."""
        while True:
            self._table.beat(serves=serves())
            await asyncio.sleep(BEAT_SECONDS)


class NoFairShare:
    """Of the one engine that a model has: all requests are its own."""

    def took(self) -> None:
        """Count nothing."""

    def came(self) -> None:
        """Count nothing."""

    def ended(self) -> None:
        """Count nothing."""

    def hold_back(self) -> None:
        """Return at once."""

    async def beat(self, serves: Callable[[], bool]) -> None:
        """Show nobody."""

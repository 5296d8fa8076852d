"""How several engines of one model get their fair share of the requests that Triton hands out.

Triton gives a request to whichever instance waits for one, and ``execute`` returns at once: so it
knows nothing of their loads. Back-pressure tells it. Each front end publishes how many requests it
has; ``execute`` of an engine that is ahead of the least loaded one holds back for a moment, and
meanwhile Triton finds the others idle. The least loaded engine never holds back, so no request
waits for want of a taker.

The numbers stand in a small file in the meeting place that all front ends map, a cache line each:

    | engine + 1 | last beat | taken by execute | come and gone in the event loop |

Each number has one thread that writes it, so there are no locks. The beat is the monotonic clock,
written by an event loop that lives and whose engine serves; a slot whose beat stands still counts
no more, whether its process has died, hangs, or waits for its engine to be restarted.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_WORDS = 8  # a slot: 64 bytes, so that no two processes write to one cache line
_ENGINE, _BEAT, _TAKEN, _PASSED = range(4)

BEAT_SECONDS = 0.1
STALE_SECONDS = 1.0  # an event loop that is so late is no place for more requests
HOLD_SECONDS = 0.05  # whatever the table says, after that the next request is taken
DOWN_SECONDS = 0.5  # the same, for a front end that can only refuse
_STEPS = (0.0002, 0.002)  # seconds between two looks at the table: at first, and at most


@dataclass(frozen=True, slots=True)
class Loads:
    """The requests under way of the engines that serve, as one front end sees them.

    ``own`` is its engine's, None where that does not serve; ``least`` the least of the others',
    None where there is none.
    """

    own: int | None
    least: int | None

    @property
    def is_ahead(self) -> bool:
        """Whether the next request belongs elsewhere: one more than a hundredth above is level."""
        if self.least is None:
            return False
        return self.own is None or self.own > self.least + 1 + self.least // 100


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
        """Say that this front end lives and its engine serves, or does not. Event loop only."""
        self._numbers[self._own + _BEAT] = time.monotonic_ns() if serves else 0

    def loads(self) -> Loads:
        """Read the table."""
        oldest = time.monotonic_ns() - int(STALE_SECONDS * 1e9)
        engines: dict[int, int] = {}
        for engine, beat, load in self._slots():
            if beat > oldest:
                engines[engine] = engines.get(engine, 0) + load
        own = engines.pop(self._engine, None)
        return Loads(own, min(engines.values(), default=None))

    def _slots(self) -> Iterator[tuple[int, int, int]]:
        numbers = self._numbers
        for at in range(0, len(numbers), _WORDS):
            if engine := numbers[at + _ENGINE]:
                yield engine - 1, numbers[at + _BEAT], numbers[at + _TAKEN] + numbers[at + _PASSED]

    def close(self) -> None:
        """Leave the table."""
        self._numbers[self._own + _BEAT] = 0
        self._numbers.release()
        self._map.close()


class FairShare:
    """Keeps one front end from taking what belongs to an engine with less to do."""

    def __init__(self, table: LoadTable) -> None:
        self._table = table
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
        step, longest = _STEPS
        while (loads := self._table.loads()).is_ahead:
            limit = DOWN_SECONDS if loads.own is None else HOLD_SECONDS
            if time.monotonic() - begun >= limit:
                return
            time.sleep(step)
            step = min(2 * step, longest)

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

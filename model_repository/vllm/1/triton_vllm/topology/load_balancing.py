"""How several engines of one model balance the requests that Triton hands out.

Triton gives a request to whichever instance is idle, and ``execute`` returns at once, so Triton
does not see the engines' loads. Back-pressure shows them: each front end publishes how many
requests it has, and ``execute`` of an engine that has more than the least loaded one returns a
moment later. Meanwhile Triton finds the other instances idle. The least loaded engine never delays,
so no request waits while an engine is free, and no delay is longer than ``HOLD_SECONDS``.

The numbers are in a small file of the rendezvous directory that all front ends map, a cache line
for each of them:

    | engine + 1 | last heartbeat | accepted by execute | accepted over HTTP, less all finished |

Each number is written by one thread, so there are no locks. The heartbeat is the monotonic clock,
written by an event loop that runs while its engine accepts requests. A slot with an old heartbeat
does not count: its process is dead or hangs, its engine is being restarted, or its queue is full.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from triton_vllm.topology.rendezvous import map_numbers

_WORDS = 8  # a slot: 64 bytes, so that no two processes write to one cache line
_ENGINE, _HEARTBEAT, _ACCEPTED, _CHANGE = range(4)

HEARTBEAT_SECONDS = 0.1
STALE_SECONDS = 1.0  # an event loop that is so late gets no more requests
# The longest delay. An engine that is ahead still accepts four requests a second through each front
# end; with a shorter delay long requests would not be levelled.
HOLD_SECONDS = 0.25
DOWN_SECONDS = 2.0  # the same, for a front end that can only refuse
_MANY = 8  # requests of an engine
_STEPS = (0.0002, 0.002)  # seconds between two looks at the table: at first, and at most


def is_level(own: int, least: int) -> bool:
    """Return whether the next request may go to an engine with ``own`` requests.

    A lead of one is allowed where there are few requests. Where there are many the engine may be
    full, and that one request would wait for a whole answer although another engine has room.
    """
    return own <= least + (least < _MANY)


class NoLoadBalancer:
    """The balancer of a model with one engine, which gets all requests."""

    def accepted(self) -> None:
        """Count a request that ``execute`` has accepted. The thread of ``execute`` only."""

    def accepted_http(self) -> None:
        """Count a request that did not come through ``execute``. Event loop only."""

    def finished(self) -> None:
        """Count the end of a request of either kind. Event loop only."""

    def backpressure(self) -> None:
        """Delay the return of ``execute`` while this engine has more requests than another."""

    async def heartbeat(self, serves: Callable[[], bool]) -> None:
        """Show the other front ends, until cancelled, that this one runs and ``serves``."""


class LoadBalancer(NoLoadBalancer):
    """Delays the next request of a front end whose engine has more requests than another."""

    def __init__(self, path: Path, slots: int, slot: int, engine: int) -> None:
        """Map the table ``path`` of ``slots`` front ends, of which this one writes ``slot``."""
        self._map = map_numbers(path, slots * _WORDS)
        self._numbers = memoryview(self._map).cast("q")
        self._own = slot * _WORDS
        self._engine = engine
        self._numbers[self._own + _ENGINE] = engine + 1

    def accepted(self) -> None:  # noqa: D102 (as above)
        self._numbers[self._own + _ACCEPTED] += 1

    def accepted_http(self) -> None:  # noqa: D102
        self._numbers[self._own + _CHANGE] += 1

    def finished(self) -> None:  # noqa: D102
        self._numbers[self._own + _CHANGE] -= 1

    async def heartbeat(self, serves: Callable[[], bool]) -> None:  # noqa: D102
        while True:
            self.beat(serves=serves())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def beat(self, *, serves: bool) -> None:
        """Show now whether this front end runs and its engine accepts requests."""
        self._numbers[self._own + _HEARTBEAT] = time.monotonic_ns() if serves else 0

    def requests(self) -> tuple[int | None, list[int]]:
        """Return the requests of this engine, None while it is down, and those of the others."""
        oldest = time.monotonic_ns() - int(STALE_SECONDS * 1e9)
        numbers = self._numbers
        engines: Counter[int] = Counter()
        for at in range(0, len(numbers), _WORDS):
            if numbers[at + _HEARTBEAT] > oldest:
                engines[numbers[at + _ENGINE] - 1] += (
                    numbers[at + _ACCEPTED] + numbers[at + _CHANGE]
                )
        return engines.pop(self._engine, None), list(engines.values())

    def backpressure(self) -> None:
        """Sleep while this engine is ahead, for a moment at most.

        ``execute`` calls it; meanwhile Triton gives this front end nothing. An engine that is down
        sleeps for longer, because it could only refuse what another engine can answer.
        """
        begun = time.monotonic()
        step, longest = _STEPS
        while time.monotonic() - begun < self._longest_delay():
            time.sleep(step)
            step = min(2 * step, longest)

    def _longest_delay(self) -> float:
        """Return for how many seconds at most ``execute`` may be delayed as things are."""
        own, others = self.requests()
        if not others or (own is not None and is_level(own, min(others))):
            return 0.0
        return DOWN_SECONDS if own is None else HOLD_SECONDS

    def close(self) -> None:
        """Leave the table."""
        self.beat(serves=False)
        self._numbers.release()
        self._map.close()

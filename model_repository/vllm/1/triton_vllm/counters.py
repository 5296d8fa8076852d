"""What a front end counts while it serves; ``metrics`` reads and exports it.

No counter is shared: each sender thread adds to its own ``Traffic``, and the event loop to its
``LoopLag``. So the cost of a token is one addition. ``MergeWarning`` looks at them now and then.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

OUTCOMES = ("ok", "client_error", "refused", "cancelled", "timeout", "engine_error")
_LAG_PERIOD = 0.25  # seconds
_MERGE_PERIOD = 10.0  # seconds
_MANY = 1000  # responses in that time


@dataclass(slots=True)
class Traffic:
    """What one sender thread has sent. Only that thread writes.

    ``seconds`` is the time spent on making responses and passing them to the server,
    ``http_wait_seconds`` that on waiting for the server's HTTP before it (http_backlog.py).
    ``merged_deltas`` were sent together with the previous delta. ``outcomes`` counts the requests
    that ended.
    """

    responses: int = 0
    merged_deltas: int = 0
    seconds: float = 0.0
    http_wait_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


class MergeWarning:
    """Warns once that sending lags behind the engine: a response holds two outputs or more."""

    def __init__(self, model: str, traffic: Sequence[Traffic]) -> None:
        """``model`` is the name that the line in the log begins with."""
        self._model = model
        self._traffic = traffic
        self._due = time.monotonic() + _MERGE_PERIOD
        self._before: tuple[int, int] | None = (0, 0)
        self._checking = threading.Lock()

    def check(self) -> None:
        """Look at what was sent since the last look, every ten seconds. Any sender thread."""
        if time.monotonic() >= self._due:
            with self._checking:
                if time.monotonic() >= self._due:
                    self._check()

    def postpone(self) -> None:
        """Leave out what is sent now, as it lags for another reason. Any sender thread."""
        with self._checking:
            self._before = None

    def _check(self) -> None:
        self._due = time.monotonic() + _MERGE_PERIOD
        merged = sum(t.merged_deltas for t in self._traffic)
        responses = sum(t.responses for t in self._traffic)
        before, self._before = self._before, (merged, responses)
        if before is None:
            return
        new_merged, new_responses = merged - before[0], responses - before[1]
        if new_responses >= _MANY and new_merged >= new_responses:
            self._due = math.inf
            logger.warning(
                f"{self._model}: a response holds {1 + new_merged / new_responses:.1f} outputs of "
                "the engine, as this front end sends more slowly than the engine generates: set a "
                "greater count in the instance_group of config.pbtxt (docs/performance.md)"
            )


class LoopLag:
    """How late the event loop runs what is due, which delays every token.

    ``last_heartbeat`` is the Unix time at which the loop last ran.
    """

    def __init__(self) -> None:
        self._worst = 0.0
        self.last_heartbeat = time.time()

    async def measure(self) -> None:
        """Measure until cancelled. Runs in the loop that it measures."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_PERIOD
            await asyncio.sleep(_LAG_PERIOD)
            self._worst = max(self._worst, loop.time() - due)
            self.last_heartbeat = time.time()

    def take_worst(self) -> float:
        """Return the worst lag in seconds since the last call."""
        worst, self._worst = self._worst, 0.0
        return worst

"""What a front end counts while it serves; ``metrics`` reads and exports it.

No counter is shared: each sender thread adds to its own ``Traffic``, and the event loop to its
``LoopLag``. So the cost of a token is one addition.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

OUTCOMES = ("ok", "client_error", "refused", "cancelled", "timeout", "engine_error")
_LAG_PERIOD = 0.25  # seconds


@dataclass(slots=True)
class Traffic:
    """What one sender thread has sent. Only that thread writes.

    ``seconds`` is the time spent on making responses and passing them to the server.
    ``merged_deltas`` were sent together with the previous delta. ``outcomes`` counts the requests
    that ended.
    """

    responses: int = 0
    merged_deltas: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


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

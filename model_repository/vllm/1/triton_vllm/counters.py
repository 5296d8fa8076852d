"""What a front end counts of itself while it serves; ``metrics`` reads and exports it.

No counter is shared: each sender thread adds to a ``Traffic`` of its own and the event loop to its
``LoopLag``, so a token pays for an addition and nothing else.
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

    ``seconds`` were spent on making responses and handing them to the server. ``merged_deltas``
    had to travel with the one before. ``outcomes`` counts the requests that ended.
    """

    responses: int = 0
    merged_deltas: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


class LoopLag:
    """How late the event loop comes to what is due: what every token waits for.

    ``last_beat`` is the Unix time at which the loop was last seen alive.
    """

    def __init__(self) -> None:
        self._worst = 0.0
        self.last_beat = time.time()

    async def measure(self) -> None:
        """Measure for ever. A coroutine of the loop in question."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_PERIOD
            await asyncio.sleep(_LAG_PERIOD)
            self._worst = max(self._worst, loop.time() - due)
            self.last_beat = time.time()

    def take_worst(self) -> float:
        """Return the worst lag in seconds since the last call."""
        worst, self._worst = self._worst, 0.0
        return worst

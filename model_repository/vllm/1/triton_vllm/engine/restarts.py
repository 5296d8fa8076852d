"""How often, and how soon, a dead engine is started again."""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST_WAIT = 30.0  # seconds
_GOOD_LIFE = 300.0  # seconds: after so long a life a death is a new story


class Restarts:
    """Counts the tries in a row. ``done`` is how many succeeded, ``limit`` how many are allowed."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.tries = 0
        self.done = 0
        self._clock = clock
        self._alive_since: float | None = clock()

    def may_try(self) -> bool:
        """Return whether one more try is allowed; a good life before forgives the earlier ones."""
        self._forgive()
        return self.tries < self.limit

    def start_try(self) -> float:
        """Count a try, allowed or not; return the seconds to wait before it: 1, 2, 4, up to 30."""
        self._forgive()
        self.tries += 1
        self._alive_since = None  # however long the try takes
        return min(_LONGEST_WAIT, 2.0 ** min(self.tries - 1, 10))

    def _forgive(self) -> None:
        if self._alive_since is not None and self._clock() - self._alive_since > _GOOD_LIFE:
            self.tries = 0

    def succeeded(self) -> None:
        """Note that the engine lives again."""
        self.done += 1
        self._alive_since = self._clock()

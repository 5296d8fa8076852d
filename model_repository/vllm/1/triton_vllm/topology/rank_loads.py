"""How many requests each data-parallel rank has, counted by all front ends of an engine together.

vLLM's own client knows its requests alone, and those of the other front ends from the coordinator,
a tenth of a second late. With batches that were nearly full, requests waited for a place on one
rank while another had room.

The numbers are in a small file in the front ends' folder that all of them map, a row of cache lines
for each front end and a number for each rank. Each is written by one thread, so there are no locks.
The row of a front end that has died no longer counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from triton_vllm.topology.rendezvous import map_numbers

_LINE = 8  # numbers in a cache line: no two processes write to one
_LOOK_SECONDS = 1.0  # between two looks at which front ends are alive


class RankLoads:
    """The requests of ``ranks`` ranks. For one thread only."""

    def __init__(
        self,
        path: Path,
        front_ends: int,
        front_end: int,
        ranks: int,
        others: Callable[[], Iterable[int]],
    ) -> None:
        """Map the table ``path`` of ``front_ends`` rows; clear row ``front_end``, this one's.

        ``others`` returns the rows of the other front ends that are alive. Raises OSError.
        """
        self._ranks = ranks
        self._own = front_end
        self._others = others
        self._living: list[int] = []
        self._looked = -_LOOK_SECONDS
        self._turn = front_end  # so that the front ends begin with different ranks
        self._width = -(-ranks // _LINE) * _LINE
        self._map = map_numbers(path, front_ends * self._width)
        self._numbers = memoryview(self._map).cast("q")
        self.is_open = True
        self._clear()

    def _clear(self) -> None:
        for rank in range(self._ranks):
            self._numbers[self._own * self._width + rank] = 0

    def change(self, rank: int, by: int) -> None:
        """Count a request of this front end that begins (1) or ends (-1)."""
        if self.is_open:
            self._numbers[self._own * self._width + rank] += by

    def requests(self) -> list[int]:
        """Return how many requests each rank has."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._living = [self._own, *self._others()]
        starts = [row * self._width for row in self._living]
        return [sum(self._numbers[at + rank] for at in starts) for rank in range(self._ranks)]

    def least(self, more: Sequence[float]) -> int:
        """Return the rank with the fewest requests; of several, another one each time.

        ``more`` is added to the requests of each rank.
        """
        loads = [sum(pair) for pair in zip(self.requests(), more, strict=True)]
        self._turn += 1
        return min(
            range(self._ranks),
            key=lambda rank: (loads[rank], (rank - self._turn) % self._ranks),
        )

    def close(self) -> None:
        """Leave the table, with no request. What is counted from then on is ignored."""
        if not self.is_open:
            return
        self._clear()
        self.is_open = False
        self._numbers.release()
        self._map.close()

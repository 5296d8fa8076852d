"""How many requests each data-parallel rank has, counted by all front ends of an engine together.

vLLM's own client knows its requests alone, and those of the other front ends from the coordinator,
a tenth of a second late. With eight front ends and batches that were nearly full, some ranks had
more requests than places meanwhile, and others had room.

The numbers are in a small file in the front ends' folder that all of them map, a row of cache lines
for each front end and a number for each rank. Each is written by one thread, so there are no locks.
A front end that dies leaves its row: its requests may be decoded to their end, and after a restart
of the engine it is one of those that are gone for good.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_LINE = 8  # numbers in a cache line: no two processes write to one


class RankLoads:
    """The requests of ``ranks`` ranks. ``change`` is for one thread only."""

    def __init__(self, path: Path, front_ends: int, front_end: int, ranks: int) -> None:
        """Map the table ``path`` of ``front_ends`` rows; clear row ``front_end``, this one's."""
        self._ranks = ranks
        self._width = -(-ranks // _LINE) * _LINE
        self._turn = front_end  # so that the front ends begin with different ranks
        size = front_ends * self._width * 8
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # a write to a full disk would end the process
            self._map = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._numbers = memoryview(self._map).cast("q")
        self._own = front_end * self._width
        for rank in range(ranks):
            self._numbers[self._own + rank] = 0

    def change(self, rank: int, by: int) -> None:
        """Count a request of this front end that begins (1) or ends (-1)."""
        self._numbers[self._own + rank] += by

    def requests(self) -> list[int]:
        """Return how many requests each rank has."""
        return [sum(self._numbers[rank :: self._width]) for rank in range(self._ranks)]

    def least(self) -> int:
        """Return the rank with the fewest requests; of several, another one each time."""
        requests = self.requests()
        self._turn += 1
        return min(
            range(self._ranks),
            key=lambda rank: (requests[rank], (rank - self._turn) % self._ranks),
        )

    def close(self) -> None:
        """Leave the table, with no request."""
        for rank in range(self._ranks):
            self._numbers[self._own + rank] = 0
        self._numbers.release()
        self._map.close()

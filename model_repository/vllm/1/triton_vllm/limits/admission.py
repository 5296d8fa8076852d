"""Who may enter: a bounded number of requests, and nobody while the model is being drained.

Being refused is cheap and comes at once; waiting in a queue that never empties is neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from triton_vllm.errors import RequestError, UnavailableError


def _nobody(why: UnavailableError) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Place:
    """One request inside. Event loop only.

    ``in_queue``: a prompt of it has joined those that wait for their prefill. ``turned_away`` is
    told why, where the first of them may not.
    """

    in_queue: bool = False
    turned_away: Callable[[UnavailableError], None] = _nobody


# Of the request that the current task works on, and of the tasks that it starts.
_place: ContextVar[Place | None] = ContextVar("place", default=None)


class Admission:
    """The requests of one front end, running and queued. Event loop only, but for ``check``.

    ``live`` is how many there are.
    """

    def __init__(
        self, max_concurrent_requests: int, max_queued_tokens: int, queued_tokens: Callable[[], int]
    ) -> None:
        """Admit ``max_concurrent_requests`` at once, and none while ``max_queued_tokens`` wait.

        0 is no limit. ``queued_tokens`` returns how many prompt tokens wait for their prefill.
        """
        self._max_requests = max_concurrent_requests
        self._max_queued_tokens = max_queued_tokens
        self._queued_tokens = queued_tokens
        self._closed: UnavailableError | None = None
        self.live = 0

    @contextlib.contextmanager
    def admit(self) -> Iterator[Place]:
        """Let one request in until the context ends. Raises UnavailableError with the limit."""
        self.check()
        self._check_queue()
        place = Place()
        _place.set(place)
        self.live += 1
        try:
            yield place
        finally:
            self.live -= 1
            _place.set(None)

    def join_queue(self) -> None:
        """Let a prompt of the current request wait for its prefill. Raises UnavailableError.

        Many may have been admitted before the first of their prompts was tokenized. Where a request
        has several prompts, as with beam search, it is refused at the first one or not at all.
        """
        place = _place.get() or Place()
        if place.in_queue:
            return
        try:
            self._check_queue()
        except UnavailableError as why:
            self.turn_away(why)
            raise
        place.in_queue = True

    def turn_away(self, why: UnavailableError) -> None:
        """Tell the door through which the current request came why it may not stay."""
        if (place := _place.get()) is not None:
            place.turned_away(why)

    def _check_queue(self) -> None:
        if queued := self._full_queue():
            raise UnavailableError(
                f"{queued} prompt tokens wait for their prefill, the limit is "
                f"{self._max_queued_tokens} (max_queued_tokens): try again later"
            )

    def check(self) -> None:
        """Raise UnavailableError if a request that came now would be refused.

        Any thread may ask, so that most refusals cost neither decoding nor a coroutine.
        """
        self.check_open()
        if self._max_requests and self.live >= self._max_requests:
            raise UnavailableError(
                f"{self.live} requests run or wait, the limit of this front end is "
                f"{self._max_requests} (max_concurrent_requests): try again later"
            )

    def check_open(self) -> None:
        """Raise UnavailableError if requests are refused, whatever room there is. Any thread."""
        if self._closed is not None:
            raise self._closed

    @property
    def has_room_in_queue(self) -> bool:
        """Whether prompts may join those that wait for their prefill. Event loop only."""
        return not self._full_queue()

    def _full_queue(self) -> int:
        """Return how many prompt tokens wait where no more may join them, else 0."""
        queued = self._queued_tokens() if self._max_queued_tokens else 0
        return queued if queued >= self._max_queued_tokens else 0

    def close(self, why: UnavailableError) -> None:
        """Refuse all that come from now on; those inside stay."""
        self._closed = why

    def reopen(self) -> None:
        """Admit again."""
        self._closed = None


def check_sequences(n: int, limit: int, where: str) -> None:
    """Raise RequestError if one request asks for more than ``limit`` sequences (0: no limit)."""
    if 0 < limit < n:
        raise RequestError(f"{where}: must be at most {limit} (max_n), got {n}")

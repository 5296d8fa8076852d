"""Who may enter: a bounded number of requests, and nobody while the model is being drained.

Being refused is cheap and comes at once; waiting in a queue that never empties is neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from triton_vllm.errors import UnavailableError


class Admission:
    """The requests of one front end, running and queued. Event loop only, but for ``check``.

    ``live`` is how many there are.
    """

    def __init__(
        self, max_requests: int, max_queued_tokens: int, queued_tokens: Callable[[], int]
    ) -> None:
        """Admit ``max_requests`` at once, and none while ``max_queued_tokens`` wait; 0: no limit.

        ``queued_tokens`` returns how many prompt tokens wait for their prefill.
        """
        self._max_requests = max_requests
        self._max_queued_tokens = max_queued_tokens
        self._queued_tokens = queued_tokens
        self._closed: UnavailableError | None = None
        self.live = 0

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Let one request in until the context ends. Raises UnavailableError with the limit."""
        self.check()
        if self._max_queued_tokens:
            queued = self._queued_tokens()
            if queued >= self._max_queued_tokens:
                raise UnavailableError(
                    f"{queued} prompt tokens wait for their prefill, the limit is "
                    f"{self._max_queued_tokens} (max_queued_tokens): try again later"
                )
        self.live += 1
        try:
            yield
        finally:
            self.live -= 1

    def check(self) -> None:
        """Raise UnavailableError if a request that came now would be refused.

        Any thread may ask, so that most refusals cost neither decoding nor a coroutine.
        """
        if self._closed is not None:
            raise self._closed
        if self._max_requests and self.live >= self._max_requests:
            raise UnavailableError(
                f"{self.live} requests run or wait, the limit of this front end is "
                f"{self._max_requests} (max_requests): try again later"
            )

    def close(self, why: UnavailableError) -> None:
        """Refuse all that come from now on; those inside stay."""
        self._closed = why

    def reopen(self) -> None:
        """Admit again."""
        self._closed = None

"""Time limits: a request that is not done in time is ended, its time in the queue included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from triton_vllm.errors import DeadlineError

_GRACE = 1.0  # seconds that the engine has to come out with the text so far


def shorter(asked: float | None, triton_microseconds: int) -> float | None:
    """Return the shorter of a limit in seconds and Triton's request timeout, where 0 is none."""
    if not triton_microseconds:
        return asked
    limit = triton_microseconds / 1e6
    return limit if asked is None else min(asked, limit)


class Deadline:
    """Ends what the current task does inside the context after ``seconds``. Event loop only.

    Leaving the context raises DeadlineError in place of the cancellation. With ``finish`` the
    generation ends with the text so far instead, as if it were done.
    """

    def __init__(
        self,
        seconds: float,
        cancel: Callable[[asyncio.Task[Any]], bool],
        finish: Callable[[], None] | None = None,
    ) -> None:
        """``cancel`` cancels a task unless somebody else has; ``finish`` ends its generation."""
        self._seconds = seconds
        self._cancel = cancel
        self._finish = finish
        self._cancelled = False

    def __enter__(self) -> Deadline:
        task = asyncio.current_task()
        assert task is not None, "a deadline belongs to a task"
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._pass)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._cancelled and kind is asyncio.CancelledError:
            raise DeadlineError(f"not done within {self._seconds:g} s, its time limit") from None

    def _pass(self) -> None:
        if self._finish is None:
            self._give_up()
        else:
            self._finish()
            self._timer = self._loop.call_later(_GRACE, self._give_up)

    def _give_up(self) -> None:
        self._cancelled = self._cancel(self._task)


class NoDeadline:
    """All the time in the world."""

    def __enter__(self) -> NoDeadline:
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

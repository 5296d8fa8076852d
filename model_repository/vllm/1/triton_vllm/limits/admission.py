"""The registry of live requests: how a request of either API is admitted, and how it is ended.

A request is admitted once and ends once. Whatever ends it before its time (its client left, its
timeout, a drain, the engine's death, a full queue) calls ``LiveRequest.end`` with the error that
the client gets; the first one wins. Being refused is cheap and immediate; waiting in a queue that
never empties is neither.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol

from triton_vllm.errors import RequestError, RequestTimeoutError, ServingError, UnavailableError

TRITON, OPENAI = "Triton", "OpenAI"  # the APIs

_GRACE = 1.0  # seconds that the engine has to return the text generated before the timeout


class Balancer(Protocol):
    """What admission needs of ``topology.load_balancing``: it counts the live requests."""

    def accepted_http(self) -> None:
        """Count a request that arrives in the event loop."""

    def finished(self) -> None:
        """Count the end of a request."""


class LiveRequest:
    """A request that has been admitted and has not ended. Event loop only."""

    def __init__(self, api: str, stop: Callable[[], bool] | None) -> None:
        """``stop`` ends the work on it, False if it is complete; None cancels the current task."""
        task = asyncio.current_task()
        assert task is not None, "a request is served by a task"
        self.api = api
        self.task = task
        self.why: ServingError | None = None  # what has ended it before its time
        self.is_queued = False  # one of its prompts has joined those that wait for their prefill
        self._stop = stop or self._cancel

    def end(self, why: ServingError) -> bool:
        """End it with ``why``; return False if it is complete or has been ended already."""
        if self.why is not None or not self._stop():
            return False
        self.why = why
        return True

    def _cancel(self) -> bool:
        # Once only, as `end` sees to: a second cancel would interrupt the engine's abort. And not
        # the task that refuses itself: it raises what it is refused with.
        if asyncio.current_task() is not self.task:
            self.task.cancel()
        return True


# The one that the current task works on, and the tasks that it starts.
_current: ContextVar[LiveRequest | None] = ContextVar("live_request", default=None)


class Admission:
    """Admits the requests of one front end and keeps those that run or wait. Event loop only."""

    def __init__(
        self,
        max_concurrent_requests: int,
        max_queued_tokens: int,
        queued_tokens: Callable[[], int],
        balancer: Balancer,
    ) -> None:
        """Admit up to ``max_concurrent_requests``, none while ``max_queued_tokens`` wait.

        0 is no limit. ``queued_tokens`` returns how many prompt tokens wait for their prefill.
        """
        self._max_requests = max_concurrent_requests
        self._max_queued_tokens = max_queued_tokens
        self._queued_tokens = queued_tokens
        self._balancer = balancer
        self._live: set[LiveRequest] = set()
        self.served: set[str] = set()  # the APIs of which requests have been admitted. Any thread
        self._closed: UnavailableError | None = None
        self.down: ServingError | None = None  # why the engine does not serve; the supervisor's

    @contextlib.contextmanager
    def admit(
        self,
        api: str = TRITON,
        timeout: float | None = None,
        *,
        finish: Callable[[], object] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[LiveRequest]:
        """Admit one request until the context ends. Raises the error that keeps it out.

        It is ended ``timeout`` seconds from now (None, 0: no limit); where ``finish`` is given,
        that is called first, and may complete the request with what there is within a second.
        Leaving the context raises what has ended the request, whatever came of that.
        """
        if api == OPENAI:
            self._balancer.accepted_http()
        try:
            self.check()
            self._check_queue()
            request = LiveRequest(api, stop)
            timers = _time_limit(request, timeout, finish)
            self._live.add(request)
            self.served.add(api)
            _current.set(request)
            try:
                yield request
            finally:
                for timer in timers:
                    timer.cancel()
                self._live.discard(request)
                _current.set(None)
                if request.why is not None:
                    raise request.why from None
        finally:
            self._balancer.finished()

    def end_all(self, why: ServingError, api: str = "") -> int:
        """End all live requests (of ``api``, if given) with ``why``; return how many.

        One whose coroutine has not had its first step is not live, and could not answer if it were
        cancelled: ``admit`` refuses it.
        """
        return sum(request.end(why) for request in self._of(api))

    async def wait(self, timeout: float) -> None:
        """Wait ``timeout`` seconds at most until no live request is left."""
        if tasks := {request.task for request in self._live}:
            await asyncio.wait(tasks, timeout=timeout)

    def count(self, api: str = "") -> int:
        """Return how many requests (of ``api``, if given) are live. Any thread."""
        return len(self._of(api)) if api else len(self._live)

    def _of(self, api: str) -> list[LiveRequest]:
        return [request for request in self._live.copy() if api in ("", request.api)]

    def join_queue(self) -> None:
        """Let a prompt of the current request wait for its prefill. Raises UnavailableError.

        Many may have been admitted before the first of their prompts was tokenized. A request with
        several prompts, as with beam search, is refused at the first one or not at all.
        """
        request = _current.get()
        if request is not None and request.is_queued:
            return
        try:
            self._check_queue()
        except UnavailableError as why:
            self.end_current(why)
            raise
        if request is not None:
            request.is_queued = True

    def end_current(self, why: UnavailableError) -> None:
        """End the request that the current task works on, if any, with ``why``."""
        if (request := _current.get()) is not None:
            request.end(why)

    def check(self) -> None:
        """Raise the error that would keep a new request out, a full queue apart. Any thread.

        Most refusals cost neither decoding nor a coroutine, as this is checked before both.
        """
        self.check_open()
        live = len(self._live)
        if self._max_requests and live >= self._max_requests:
            raise UnavailableError(
                f"{live} requests run or wait, the limit of this front end is "
                f"{self._max_requests} (max_concurrent_requests): try again later"
            )

    def check_open(self) -> None:
        """Raise the error that keeps requests out for other reasons than load. Any thread."""
        self.check_up()
        if self._closed is not None:
            raise self._closed

    def check_up(self) -> None:
        """Raise the reason if the engine does not serve. Any thread."""
        if self.down is not None:
            raise self.down

    def _check_queue(self) -> None:
        if not self.has_room_in_queue:
            raise UnavailableError(
                f"{self._queued_tokens()} prompt tokens wait for their prefill, the limit is "
                f"{self._max_queued_tokens} (max_queued_tokens): try again later"
            )

    @property
    def has_room_in_queue(self) -> bool:
        """Whether prompts may join those that wait for their prefill."""
        return not self._max_queued_tokens or self._queued_tokens() < self._max_queued_tokens

    def close(self, why: UnavailableError) -> None:
        """Refuse new requests with ``why``; live ones continue."""
        self._closed = why

    def reopen(self) -> None:
        """Admit requests again."""
        self._closed = None


def _time_limit(
    request: LiveRequest, seconds: float | None, finish: Callable[[], object] | None
) -> list[asyncio.TimerHandle]:
    """End ``request`` after ``seconds``, which include its time in the queue."""
    if not seconds:
        return []
    call_later = asyncio.get_running_loop().call_later
    late = RequestTimeoutError(f"request timed out after {seconds:g} s")
    if finish is None:
        return [call_later(seconds, request.end, late)]
    return [call_later(seconds, finish), call_later(seconds + _GRACE, request.end, late)]


def check_sequences(n: int, limit: int, where: str) -> None:
    """Raise RequestError if one request asks for more than ``limit`` sequences (0: no limit)."""
    if 0 < limit < n:
        raise RequestError(f"{where}: must be at most {limit} (max_n), got {n}")

"""Holds responses back while the queues of Triton's HTTP threads fill up: a full one drops them.

Each HTTP thread of tritonserver gets a notice of a response through a pair of Unix sockets. When
the kernel's buffer between them is full, with 278 notices by default, tritonserver drops the notice
and goes on (``evthr_defer`` of libevhtp; 24.10 and the source of August 2026). The client's text
ends early then, or its stream never does, and nobody is told. So a sender thread looks now and
then, and waits while a queue is more than a third full. What comes from the engine meanwhile is
merged. The first response to a request takes two notices, for which the other two thirds have room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import Protocol

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.errors import one_line
from triton_vllm.limits.server_sockets import ServerSockets

logger = logging.getLogger(__name__)

_PART = 3  # a third of a queue may be filled
_PAUSE_SECONDS = 0.001
_STUCK_SECONDS = 5.0  # a queue that has not become shorter for so long must not hold up everything
_BLIND_SECONDS = 60.0  # the pause before another look, after a stuck queue or an error
_SCAN_SECONDS = (1.0, 60.0)  # the first and the last pause between scans: HTTP starts after models
_PERIOD_SECONDS = 10.0  # in which a tenth of waiting is mentioned in the log
_LONG_SECONDS = 1.0


class Sockets(Protocol):
    """As much of ``ServerSockets`` as is used here."""

    cost: int

    def scan(self) -> None:
        """Find the sockets."""

    def fullest(self) -> tuple[int, int]:
        """Return the bytes that wait in the fullest of them, and the size of its buffer."""

    def reset(self) -> None:
        """Forget what an error has left."""

    def close(self) -> None:
        """Close what it looks with."""


class NoHttpBacklog:
    """For a server without HTTP, or whose sockets cannot be seen."""

    @property
    def is_behind(self) -> bool:
        """Whether a response has waited in the last ten seconds."""
        return False

    def before_send(self) -> float:
        """Hold nothing back; return the seconds that this took."""
        return 0.0

    def close(self) -> None:
        """Do nothing."""


class HttpBacklog(NoHttpBacklog):
    """Shared by the sender threads of a front end."""

    def __init__(self, sockets: Sockets, front_ends: int, model: str) -> None:
        """``front_ends`` share the room in the queues; ``model`` is the name for the log."""
        self._sockets = sockets
        self._bytes_per_response = sockets.cost * front_ends
        self._model = model
        self._allowed: deque[None] = deque()  # an item for each response before another look
        self._looking = threading.Lock()
        self._closing = threading.Event()
        self._blind_until = 0.0
        self._scan_due = 0.0
        self._scan_pause = _SCAN_SECONDS[0]
        self._waited = 0.0  # in this period
        self._period_end = 0.0
        self._behind_until = 0.0
        self._has_told = False

    @property
    def is_behind(self) -> bool:  # noqa: D102 (as in NoHttpBacklog)
        return time.monotonic() < self._behind_until

    def before_send(self) -> float:
        """Wait until there is room for a response; return the seconds. Any sender thread."""
        try:
            self._allowed.pop()
        except IndexError:
            return self._look()
        return 0.0

    def _look(self) -> float:
        since = time.monotonic()
        with self._looking:
            try:
                self._allowed.pop()  # another thread may just have looked
            except IndexError:
                if time.monotonic() >= self._blind_until and not self._closing.is_set():
                    self._renew()
        return time.monotonic() - since

    def _renew(self) -> None:
        """Wait until there is room, and allow as many responses as there is room for."""
        try:
            self._allowed.extend([None] * self._await_room(time.monotonic()))
        except Exception as error:
            self._look_away(error)

    def close(self) -> None:
        """Wait no more, so that the last responses can be sent."""
        self._closing.set()
        with self._looking:
            self._sockets.close()

    def _await_room(self, now: float) -> int:
        """Return how many responses may follow the one that waits."""
        if now >= self._scan_due:
            self._scan_due = now + self._scan_pause
            self._scan_pause = min(2 * self._scan_pause, _SCAN_SECONDS[1])
            self._sockets.scan()
        waiting, size = self._sockets.fullest()
        if waiting * _PART > size:
            try:
                waiting, size = self._wait(waiting)
            finally:
                self._count(now, time.monotonic())
        return max(0, (size // _PART - waiting) // self._bytes_per_response)

    def _wait(self, before: int) -> tuple[int, int]:
        """Return what ``fullest`` does when there is room again; it was ``before``.

        Raises TimeoutError.
        """
        stuck_at = time.monotonic() + _STUCK_SECONDS
        while not self._closing.wait(_PAUSE_SECONDS):
            waiting, size = self._sockets.fullest()
            if waiting * _PART <= size:
                return waiting, size
            if waiting < before:  # a thread has taken something, whoever fills its queue again
                stuck_at = time.monotonic() + _STUCK_SECONDS
            elif time.monotonic() > stuck_at:
                raise TimeoutError(f"a thread of it has done nothing for {_STUCK_SECONDS:.0f} s")
            before = waiting
        return 0, 0

    def _count(self, since: float, now: float) -> None:
        """Say once that responses wait, if they do so for a tenth of the time."""
        self._behind_until = now + _PERIOD_SECONDS
        if now > self._period_end:
            self._waited, self._period_end = 0.0, now + _PERIOD_SECONDS
        self._waited += now - since
        if self._waited >= _LONG_SECONDS and not self._has_told:
            self._has_told = True
            logger.warning(
                f"{self._model}: Triton's HTTP is slower than the engine, so this front end waits "
                "for it and merges responses (docs/known-issues.md)"
            )

    def _look_away(self, error: Exception) -> None:
        """Hold nothing back for a minute."""
        self._blind_until = time.monotonic() + _BLIND_SECONDS
        logger.error(
            f"{self._model}: for {_BLIND_SECONDS:.0f} s Triton's HTTP may lose responses, if there "
            f"are many: {one_line(error)} (docs/known-issues.md)"
        )
        with contextlib.suppress(OSError):  # the next look fails, too, and is told
            self._sockets.reset()


def watch_http_backlog(server: ServerOptions, front_ends: int, model: str) -> NoHttpBacklog:
    """Return what holds back the responses of one of ``front_ends``, if the server has HTTP.

    ``model`` is the name for the log.
    """
    if server.http is None:
        return NoHttpBacklog()
    try:
        return HttpBacklog(ServerSockets(os.getppid()), front_ends, model)
    except OSError as error:
        logger.warning(
            f"{model}: Triton's HTTP may lose responses, if there are many, as the kernel does not "
            f"report how many wait: {one_line(error)} (docs/known-issues.md)"
        )
        return NoHttpBacklog()

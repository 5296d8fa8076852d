"""Holds responses back while Triton's HTTP has too many to send, of which it would lose some.

Each HTTP thread of tritonserver learns of a response through a pair of Unix sockets. When the
kernel's buffer between them is full, which 278 responses do by default, tritonserver drops the
notice and goes on (``evthr_defer`` of libevhtp; 24.10 and the source of August 2026). The client's
text ends early then, or its stream never does, and nobody is told. So a sender thread looks now
and then, and waits while the fullest socket is half full. What comes from the engine meanwhile is
merged.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.errors import one_line
from triton_vllm.limits.server_sockets import ServerSockets

logger = logging.getLogger(__name__)

_SENDS_UNSEEN = 1000  # before another look, where there is nothing to see
_PAUSE_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 5.0  # a thread that is stuck for so long must not hold up all others
_TELL_SECONDS = 1.0  # of waiting, in all, that the log mentions
_SCAN_SECONDS = (1.0, 60.0)  # the first and the last pause between scans: HTTP starts after models


class Sockets(Protocol):
    """As much of ``ServerSockets`` as is used here."""

    capacity: int
    cost: int

    def scan(self) -> None:
        """Find the sockets."""

    def fullest(self) -> int:
        """Return how many bytes wait in the fullest of them."""


class NoHttpBacklog:
    """Of a server without HTTP, or whose sockets cannot be seen."""

    def before_send(self) -> None:
        """Hold nothing back."""


class HttpBacklog(NoHttpBacklog):
    """Shared by the sender threads of a front end."""

    def __init__(self, sockets: Sockets, front_ends: int, model: str) -> None:
        """``front_ends`` share the room in the sockets; ``model`` is the name for the log."""
        self._sockets = sockets
        self._limit = sockets.capacity // 2
        self._share = sockets.cost * front_ends
        self._model = model
        self._room = 0  # responses to send before another look
        self._looking = threading.Lock()
        self._waited = 0.0  # seconds
        self._has_failed = False
        self._scan_due = 0.0
        self._scan_pause = _SCAN_SECONDS[0]

    def before_send(self) -> None:
        """Wait until there is room for a response. Any sender thread."""
        self._room -= 1
        if self._room < 0:
            with self._looking:
                if self._room < 0:
                    self._room = self._await_room()

    def _await_room(self) -> int:
        """Return how many responses may follow the one that waits."""
        try:
            self._scan()
            waiting = self._sockets.fullest()
            if waiting > self._limit:
                waiting = self._wait()
        except (OSError, _StuckError) as error:
            if not self._has_failed:
                logger.error(
                    f"{self._model}: Triton's HTTP may lose responses, if there are many: "
                    f"{one_line(error)}"
                )
            self._has_failed = True
            return _SENDS_UNSEEN
        return (self._limit - waiting) // self._share

    def _wait(self) -> int:
        """Return how many bytes wait when there is room again. Raises _StuckError."""
        since = time.monotonic()
        while (waiting := self._sockets.fullest()) > self._limit:
            if time.monotonic() - since > _LONGEST_WAIT_SECONDS:
                raise _StuckError(f"it has sent nothing for {_LONGEST_WAIT_SECONDS:.0f} s")
            time.sleep(_PAUSE_SECONDS)
        before, self._waited = self._waited, self._waited + time.monotonic() - since
        if before < _TELL_SECONDS <= self._waited:
            logger.warning(
                f"{self._model}: Triton's HTTP is slower than the engine, so this front end waits "
                "for it and merges responses (docs/known-issues.md)"
            )
        return waiting

    def _scan(self) -> None:
        now = time.monotonic()
        if now >= self._scan_due:
            self._scan_due = now + self._scan_pause
            self._scan_pause = min(2 * self._scan_pause, _SCAN_SECONDS[1])
            self._sockets.scan()


class _StuckError(Exception):
    """An HTTP thread does nothing."""


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
            f"{model}: Triton's HTTP may lose responses, if there are many, as this kernel does "
            f"not show how many wait: {one_line(error)} (docs/known-issues.md)"
        )
        return NoHttpBacklog()

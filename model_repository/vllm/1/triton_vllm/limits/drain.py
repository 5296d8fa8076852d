"""The end of serving: what runs may finish, up to a limit; then Triton can unload in time.

Triton tells a model nothing about its end before every request has had its last response: at an
unload it waits for as long as they run, at SIGTERM until its exit timeout, after which it exits
with an error and without a word to the model. But it tells everybody else: it has no metadata of a
model that is being unloaded, and at SIGTERM its HTTP service takes no more connections.
So the model asks, as any client would.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import threading
from collections.abc import Callable
from typing import Protocol
from urllib.parse import quote

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import UnavailableError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission

logger = logging.getLogger(__name__)

_PERIOD = 0.5  # seconds between two questions
_PATIENCE = 2.0  # seconds for an answer
_IN_A_ROW = 2  # a server that is gone for one moment only is not gone


class Answer(enum.Enum):
    """What the server says about this model."""

    READY = enum.auto()
    NOT_READY = enum.auto()  # it is being loaded or unloaded
    GONE = enum.auto()  # no connection: the HTTP service has been stopped
    UNCLEAR = enum.auto()  # a busy server, or one that keeps this question to some clients


def ask_server(http: tuple[str, int], path: str) -> Answer:
    """Ask once, without waiting for a busy server for more than two seconds."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(http, timeout=_PATIENCE) as connection:
            connection.sendall(request.encode())
            status = connection.recv(16).decode(errors="replace")
    except ConnectionError:
        return Answer.GONE
    except OSError:  # no answer in time; no descriptor, port or address on our side
        return Answer.UNCLEAR
    if not status:
        return Answer.GONE
    return {"200": Answer.READY, "503": Answer.NOT_READY}.get(status[9:12], Answer.UNCLEAR)


class OtherDoor(Protocol):
    """Where requests come in that are none of Triton's. Event loop only."""

    def begin_drain(self, why: UnavailableError) -> None:
        """Give requests that run their time, then end them."""

    def take_back(self) -> None:
        """Let them run on."""


class Drain:
    """Ends the requests of one front end when the model is to go. Event loop only."""

    def __init__(
        self,
        admission: Admission,
        loop: EventLoopThread,
        seconds: float,
        other_door: OtherDoor,
        name: str,
    ) -> None:
        """Give what runs ``seconds`` to finish, once it has begun.

        What came through the ``other_door`` has a time of its own, which begins with it.
        """
        self._admission = admission
        self._loop = loop
        self._seconds = seconds
        self._other_door = other_door
        self._name = name
        self._timer: asyncio.TimerHandle | None = None
        self.ended: UnavailableError | None = None

    def begin(self) -> None:
        """Refuse new requests; give those that run their time."""
        why = UnavailableError("the model is being unloaded or the server stopped")
        self._admission.close(why)
        logger.info(
            f"{self._name}: {why}: {self._admission.live} requests may run for "
            f"{self._seconds:g} s more"
        )
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end, why)
        self._other_door.begin_drain(why)

    def take_back(self) -> None:
        """Serve again: the server has thought better of it."""
        if self._timer is not None:
            self._timer.cancel()
        self._other_door.take_back()
        self.ended = None
        self._admission.reopen()
        logger.info(f"{self._name}: ready again")

    def _end(self, why: UnavailableError) -> None:
        self.ended = UnavailableError(f"{why}, and {self._seconds:g} s of grace are over")
        aborted = self._loop.cancel_requests()
        if aborted:
            logger.warning(f"{self._name}: {aborted} requests aborted: {why}")


class NoWatch:
    """Of a server that has no HTTP service to ask."""

    def stop(self) -> None:
        """Do nothing."""


class ServerWatch:
    """Asks the server twice a second whether this model is ready, in a thread of its own."""

    def __init__(
        self,
        ask: Callable[[], Answer],
        in_use: Callable[[], bool],
        changed: Callable[[bool], None],
    ) -> None:
        """Call ``changed(False)`` when the model is no longer ready, ``changed(True)`` if again."""
        self._ask = ask
        self._in_use = in_use
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(_PATIENCE + 1)

    def _run(self) -> None:
        judge = Judge()
        while not self._stop.wait(_PERIOD):
            try:
                ready = judge.hear(self._ask(), in_use=self._in_use())
                if ready is not None:
                    self._changed(ready)
            except Exception as error:
                logger.error(f"asking the server: {one_line(error)}")


class Judge:
    """Turns answers into changes: of READY and what follows it, never before."""

    def __init__(self) -> None:
        self._ready: bool | None = None  # None: never seen ready, as while the model loads
        self._doubts = 0

    def hear(self, answer: Answer, *, in_use: bool) -> bool | None:
        """Return whether the model is ready, where that has changed; else None.

        A model that is ``in_use`` has been ready, seen or not.
        """
        if self._ready is None and in_use:
            self._ready = True
        if answer is Answer.READY:
            self._doubts = 0
            came_back = self._ready is False
            self._ready = True
            return True if came_back else None
        if answer is Answer.UNCLEAR or not self._ready:
            return None
        self._doubts += 1
        if self._doubts < _IN_A_ROW:
            return None
        self._ready = False
        return False


def watch_server(
    settings: ModelSettings,
    server: ServerOptions,
    in_use: Callable[[], bool],
    changed: Callable[[bool], None],
) -> ServerWatch | NoWatch:
    """Start to watch the server, where it can be asked.

    ``in_use``: a request of the server's own is under way.
    """
    http = server.http
    if http is None:
        logger.warning(f"{settings.name}: the server has no HTTP to ask: requests are not drained")
        return NoWatch()
    # The model's metadata, not its `ready`: that is also no, from 26.03 on, while an engine of any
    # instance is down.
    path = f"/v2/models/{quote(settings.name, safe='')}/versions/{settings.version}"
    return ServerWatch(lambda: ask_server(http, path), in_use, changed)


def drain_timeout_seconds(settings: ModelSettings, server: ServerOptions) -> float:
    """Return the operator's limit, or what the server's exit timeout leaves of it."""
    return server.drain_timeout_seconds(
        settings.serving.drain_timeout_seconds, settings.placement.instances
    )

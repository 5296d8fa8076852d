"""Watches whether the server still serves this model, which Triton does not tell the model.

At an unload Triton waits for as long as requests run before it calls ``finalize``; at SIGTERM it
waits until its exit timeout, then exits with an error and never calls the model. Its HTTP service
does show the end: it has no metadata of a model that is being unloaded, and at SIGTERM it accepts
no more connections. So the model asks the HTTP service, as any client would.
"""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Callable
from urllib.parse import quote

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import one_line

logger = logging.getLogger(__name__)

_PERIOD = 0.5  # seconds between two probes
_TIMEOUT = 2.0  # seconds for an answer
_CONNECT_TIMEOUT = 0.5
_IN_A_ROW = 2  # failures that count: a server may be unreachable for one moment only


def ask_server(address: tuple[str, int], path: str) -> bool | None:
    """Return whether the server has the model, None if that stays unknown; at most two seconds.

    It has not while the model is loaded or unloaded (503), or once the HTTP service has been
    stopped (no connection). Unknown: a busy server, one that answers this to some clients only, or
    no descriptor, port or address on this side.
    """
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        return {200: True, 503: False}.get(connection.getresponse().status)
    except ConnectionError:  # RemoteDisconnected is one
        return False
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def server_stops(address: tuple[str, int] | None) -> bool:
    """Return whether the server has received SIGTERM, or that is unknown; at most half a second."""
    if address is None:
        return True
    try:
        socket.create_connection(address, timeout=_CONNECT_TIMEOUT).close()
    except OSError:
        return True
    return False


class NoWatch:
    """The watch of a server without an HTTP service."""

    def stop(self) -> None:
        """Do nothing."""


class ServerWatch:
    """Probes the server twice a second, in a thread of its own."""

    def __init__(
        self,
        ask: Callable[[], bool | None],
        used: Callable[[], bool],
        changed: Callable[[bool], None],
    ) -> None:
        """Call ``changed(False)`` when the model is no longer ready, ``changed(True)`` if again."""
        self._ask = ask
        self._used = used
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(_TIMEOUT + 1)

    def _run(self) -> None:
        readiness = ReadinessDebouncer()
        while not self._stop.wait(_PERIOD):
            try:
                ready = readiness.update(self._ask(), used=self._used())
                if ready is not None:
                    self._changed(ready)
            except Exception as error:
                logger.error(f"asking the server: {one_line(error)}")


class ReadinessDebouncer:
    """Turns answers into changes: from the first yes on, and not for a single no."""

    def __init__(self) -> None:
        self._ready: bool | None = None  # None: never seen ready, as while the model loads
        self._failures = 0

    def update(self, answer: bool | None, *, used: bool) -> bool | None:
        """Return whether the model is ready if that has changed, else None.

        A model that has been ``used`` has been ready, seen or not.
        """
        if self._ready is None and used:
            self._ready = True
        if answer:
            self._failures = 0
            came_back, self._ready = self._ready is False, True
            return True if came_back else None
        if answer is None or not self._ready:
            return None
        self._failures += 1
        if self._failures < _IN_A_ROW:
            return None
        self._ready = False
        return False


def watch_server(
    settings: ModelSettings,
    server: ServerOptions,
    used: Callable[[], bool],
    changed: Callable[[bool], None],
) -> ServerWatch | NoWatch:
    """Start to watch the server, if it has an HTTP service.

    ``used`` returns whether a request has come through the server.
    """
    address = server.http
    if address is None:
        logger.warning(f"{settings.name}: the server has no HTTP to ask: requests are not drained")
        return NoWatch()
    # The model's metadata, because from Triton 26.03 `ready` is also false while the engine of any
    # instance is down.
    path = f"/v2/models/{quote(settings.name, safe='')}/versions/{settings.version}"
    return ServerWatch(lambda: ask_server(address, path), used, changed)

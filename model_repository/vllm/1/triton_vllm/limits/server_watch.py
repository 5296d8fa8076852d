"""Watches whether the server still serves this model, which Triton does not tell the model.

At an unload Triton waits for as long as requests run before it calls ``finalize``; at SIGTERM it
waits until its exit timeout, then exits with an error and never calls the model. Its HTTP service
does show the end: it has no metadata of a model that is being unloaded, and at SIGTERM it accepts
no more connections. So the model asks the HTTP service, as any client would.
"""

from __future__ import annotations

import enum
import http.client
import logging
import threading
from collections.abc import Callable
from urllib.parse import quote

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import one_line

logger = logging.getLogger(__name__)

_PERIOD = 0.5  # seconds between two probes
_TIMEOUT = 2.0  # seconds for an answer
_IN_A_ROW = 2  # failures that count: a server may be unreachable for one moment only


class ProbeResult(enum.Enum):
    """The server's answer about this model."""

    READY = enum.auto()
    NOT_READY = enum.auto()  # it is being loaded or unloaded
    UNREACHABLE = enum.auto()  # no connection: the HTTP service has been stopped
    UNKNOWN = enum.auto()  # a busy server, or one that answers this to some clients only


def ask_server(address: tuple[str, int], path: str) -> ProbeResult:
    """Ask once; give up after two seconds."""
    connection = http.client.HTTPConnection(*address, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except ConnectionError:  # RemoteDisconnected is one
        return ProbeResult.UNREACHABLE
    except (OSError, http.client.HTTPException):
        # No answer in time, no HTTP; or no descriptor, port or address on this side.
        return ProbeResult.UNKNOWN
    finally:
        connection.close()
    known = {200: ProbeResult.READY, 503: ProbeResult.NOT_READY}
    return known.get(status, ProbeResult.UNKNOWN)


class NoWatch:
    """The watch of a server without an HTTP service."""

    def stop(self) -> None:
        """Do nothing."""


class ServerWatch:
    """Probes the server twice a second, in a thread of its own."""

    def __init__(
        self,
        ask: Callable[[], ProbeResult],
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
        self._thread.join(_TIMEOUT + 1)

    def _run(self) -> None:
        readiness = ReadinessDebouncer()
        while not self._stop.wait(_PERIOD):
            try:
                ready = readiness.update(self._ask(), in_use=self._in_use())
                if ready is not None:
                    self._changed(ready)
            except Exception as error:
                logger.error(f"asking the server: {one_line(error)}")


class ReadinessDebouncer:
    """Turns probe results into changes: from the first READY on, and not for a single failure."""

    def __init__(self) -> None:
        self._ready: bool | None = None  # None: never seen ready, as while the model loads
        self._failures = 0

    def update(self, result: ProbeResult, *, in_use: bool) -> bool | None:
        """Return whether the model is ready if that has changed, else None.

        A model that is ``in_use`` has been ready, seen or not.
        """
        if self._ready is None and in_use:
            self._ready = True
        if result is ProbeResult.READY:
            self._failures = 0
            came_back = self._ready is False
            self._ready = True
            return True if came_back else None
        if result is ProbeResult.UNKNOWN or not self._ready:
            return None
        self._failures += 1
        if self._failures < _IN_A_ROW:
            return None
        self._ready = False
        return False


def watch_server(
    settings: ModelSettings,
    server: ServerOptions,
    in_use: Callable[[], bool],
    changed: Callable[[bool], None],
) -> ServerWatch | NoWatch:
    """Start to watch the server, if it has an HTTP service.

    ``in_use`` returns whether a request that came through the server is live.
    """
    address = server.http
    if address is None:
        logger.warning(f"{settings.name}: the server has no HTTP to ask: requests are not drained")
        return NoWatch()
    # The model's metadata, not its `ready`: that is also no, from 26.03 on, while an engine of any
    # instance is down.
    path = f"/v2/models/{quote(settings.name, safe='')}/versions/{settings.version}"
    return ServerWatch(lambda: ask_server(address, path), in_use, changed)

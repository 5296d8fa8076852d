"""Notices clients that cancelled or went away, for all live requests at once.

Triton does not tell the model when a client leaves; the model has to ask, at 50 µs a request. One
thread asks, a fixed number of times a second, so that no token pays for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from triton_vllm.errors import CancelledError
from triton_vllm.limits.admission import LiveRequest

logger = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


class CancellationWatcher:
    """Ends each request whose client is gone."""

    def __init__(self, period: float) -> None:
        """Start to ask every ``period`` seconds."""
        self._period = period
        self._live: dict[LiveRequest, Callable[[], bool]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellation", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watch(self, request: LiveRequest, is_cancelled: Callable[[], bool]) -> Iterator[None]:
        """Ask whether the client is gone until the context ends. Event loop only."""
        self._live[request] = is_cancelled
        try:
            yield
        finally:
            self._live.pop(request, None)

    def stop(self) -> None:
        """End the thread; leave it behind if a question to Triton takes longer than seconds."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        # So that top -H shows what the asking costs.
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        with contextlib.suppress(OSError):
            comm.write_text("cancellation")
        while not self._stop.wait(self._period):
            try:
                # The event loop may come in between: then it is "changed", and the next round's.
                live = list(self._live.items())
            except RuntimeError:
                continue
            for request, is_cancelled in live:
                try:
                    if is_cancelled():
                        request.task.get_loop().call_soon_threadsafe(self._end, request)
                except Exception as error:
                    logger.error(f"cancellation: {error}")

    def _end(self, request: LiveRequest) -> None:
        if self._live.pop(request, None) is not None:  # it is still live
            request.end(CancelledError("cancelled by the client"))

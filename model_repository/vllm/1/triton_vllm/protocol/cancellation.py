"""Notices clients that cancelled or went away, for all live requests at once.

Triton does not call the model when a client leaves; somebody has to ask, 50 µs a request. One
thread asks, a fixed number of times a second, so that no token pays for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from triton_vllm.protocol.stream import ResponseStream

logger = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


class CancellationWatcher:
    """Cancels the task of each request whose client is gone."""

    def __init__(self, period: float, cancel: Callable[[asyncio.Task[Any]], object]) -> None:
        """Start to ask every ``period`` seconds; ``cancel`` is called in the task's event loop."""
        self._cancel_task = cancel
        self._period = period
        self._live: dict[ResponseStream, asyncio.Task[None]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancellation", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def watch(self, stream: ResponseStream) -> Iterator[None]:
        """Watch ``stream`` while the current task works on it. Event loop only."""
        task = asyncio.current_task()
        assert task is not None, "watch() belongs to a task"
        self._live[stream] = task
        try:
            yield
        finally:
            self._live.pop(stream, None)

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
            for stream, task in live:
                try:
                    if stream.is_cancelled():
                        task.get_loop().call_soon_threadsafe(self._cancel, stream)
                except Exception as error:
                    logger.error(f"cancellation: {error}")

    def _cancel(self, stream: ResponseStream) -> None:
        """Cancel the stream's task, if it is still at work. Event loop only."""
        task = self._live.pop(stream, None)
        if task is not None:
            self._cancel_task(task)

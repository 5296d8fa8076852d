"""Python's logging for this package, sent to Triton's log; and the timer of a start."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

logger = logging.getLogger(__name__)


def log_to_triton(triton: Any) -> None:
    """Send all that this package logs to ``triton``, which is ``pb_utils.Logger``.

    Other libraries keep their own handlers: vLLM logs to the server's standard output.
    """
    package = logging.getLogger(__package__)
    package.handlers = [TritonHandler(triton)]
    package.setLevel(logging.INFO)
    package.propagate = False  # or a root handler of another library would repeat each line


class TritonHandler(logging.Handler):
    """Writes each record as one message of the same level to ``pb_utils.Logger``. Any thread."""

    def __init__(self, triton: Any) -> None:
        super().__init__()
        self._triton = triton
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``. Raises nothing: a request must not fail for its line in the log."""
        if os.getpid() != self._pid:  # a forked child has no connection to the server
            return
        try:
            # Triton takes UTF-8 only, and a client's text may hold what UTF-8 cannot express.
            message = self.format(record).encode(errors="backslashreplace").decode()
            if record.levelno >= logging.ERROR:
                self._triton.log_error(message)
            elif record.levelno >= logging.WARNING:
                self._triton.log_warn(message)
            else:
                self._triton.log_info(message)
        except Exception:
            self.handleError(record)


class StartupTimer:
    """Logs how long the steps of one start take, for the model ``name``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start = self._last = time.monotonic()

    def lap(self, what: str) -> None:
        """Log the seconds since the last lap, or since the start."""
        now = time.monotonic()
        logger.info(f"{self._name}: {what} ({now - self._last:.1f} s)")
        self._last = now

    def total(self, what: str) -> None:
        """Log the seconds since the start."""
        logger.info(f"{self._name}: {what} ({time.monotonic() - self._start:.1f} s)")

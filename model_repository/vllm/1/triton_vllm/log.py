"""Says in the log how long each phase of a start took."""

from __future__ import annotations

import time
from typing import Protocol


class Log(Protocol):
    """What we need of ``pb_utils.Logger``."""

    def log_info(self, message: str) -> None:
        """Log at INFO."""

    def log_warn(self, message: str) -> None:
        """Log at WARNING."""

    def log_error(self, message: str) -> None:
        """Log at ERROR."""


class Phases:
    """The phases of one start, one after the other, of the model ``name``."""

    def __init__(self, name: str, log: Log) -> None:
        self._name = name
        self._log = log
        self._begin = self._since = time.monotonic()

    def done(self, what: str) -> None:
        """Log the seconds since the last phase was done."""
        now = time.monotonic()
        self._tell(what, now - self._since)
        self._since = now

    def all_done(self, what: str) -> None:
        """Log the seconds since the start."""
        self._tell(what, time.monotonic() - self._begin)

    def _tell(self, what: str, seconds: float) -> None:
        self._log.log_info(f"{self._name}: {what} ({seconds:.1f} s)")

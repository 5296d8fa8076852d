"""Errors, and the one place that maps them to Triton statuses.

ServingError
├── RequestError       the client sent something wrong          INVALID_ARG
├── UnavailableError   the engine cannot take or finish it now  UNAVAILABLE
├── CancelledError     the client cancelled or went away        CANCELLED
├── GenerationError    the engine failed on this request        INTERNAL
└── SettingsError      the operator's files are wrong           (the load fails)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ServingError(Exception):
    """An expected failure; its text is written for the person who reads it."""

    status = "INTERNAL"


class RequestError(ServingError):
    """A request that cannot be served as it was sent. Says what, what came, what is allowed."""

    status = "INVALID_ARG"


class UnavailableError(ServingError):
    """The engine is down, shutting down or full. The same request may succeed later."""

    status = "UNAVAILABLE"


class CancelledError(ServingError):
    """The client cancelled the request or disappeared."""

    status = "CANCELLED"


class GenerationError(ServingError):
    """The engine failed on this one request. Not the client's mistake."""


class SettingsError(ServingError):
    """The model folder's files are missing, malformed or contradictory. Fails the load."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean "temperature"?`` for a near miss, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def one_line(error: BaseException) -> str:
    """Return an error's text as one line of at most 2000 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 2000 else text[:1997] + "..."

"""Errors, and the one place that maps them to Triton statuses.

ServingError
├── RequestError       the client's request is wrong            INVALID_ARG
│   ├── AdapterNotFoundError   an unknown LoRA adapter           NOT_FOUND
│   └── MediaError             an image, audio or video that cannot be used
├── UnavailableError   the engine cannot take or finish it now  UNAVAILABLE
│   └── EngineDownError    the engine died                      UNAVAILABLE
├── CancelledError     the client cancelled or went away        CANCELLED
├── RequestTimeoutError the request timed out                   UNAVAILABLE
├── GenerationError    the engine failed on this request        INTERNAL
└── SettingsError      the operator's files are wrong           (the load fails)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ServingError(Exception):
    """An expected failure, with a text for the client or the operator.

    ``status`` is Triton's; ``outcome`` is the request's outcome in the metrics. ``one_line`` bounds
    the text and makes it encodable, because it may quote anything that a client sent.
    """

    status = "INTERNAL"
    outcome = "engine_error"

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class RequestError(ServingError):
    """A request that is wrong. The text has the input, its value and what is allowed."""

    status = "INVALID_ARG"
    outcome = "client_error"


class AdapterNotFoundError(RequestError):
    """A request names an unknown LoRA adapter. The text lists the known ones."""

    status = "NOT_FOUND"


class MediaError(RequestError, ValueError):
    """An image, audio or video cannot be used. The text has its place and the reason.

    It is also a ValueError, which vLLM's OpenAI-compatible front end answers with HTTP 400.
    """


class UnavailableError(ServingError):
    """The engine is down, shutting down or full. The same request may succeed later."""

    status = "UNAVAILABLE"
    outcome = "refused"


class EngineDownError(UnavailableError):
    """The engine died, before or while it worked on the request."""

    outcome = "engine_error"


class CancelledError(ServingError):
    """The client cancelled the request or disappeared."""

    status = "CANCELLED"
    outcome = "cancelled"


class RequestTimeoutError(ServingError):
    """The request timed out.

    Triton has no status for it; its own scheduler uses UNAVAILABLE for a request that timed out.
    """

    status = "UNAVAILABLE"
    outcome = "timeout"


class GenerationError(ServingError):
    """The engine failed on this one request, through no fault of the client."""


class SettingsError(ServingError):
    """The model folder's files are missing, malformed or contradictory. Fails the load."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean "temperature"?`` for a near miss, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1) if len(name) < 100 else []
    return f', did you mean "{close[0]}"?' if close else ""


def one_line(error: BaseException | str, most: int = 2000) -> str:
    """Return an error, or its text, as one line of at most ``most`` characters of valid Unicode.

    Half of a surrogate pair becomes its escape, since neither Triton nor a log can encode it.
    """
    try:
        line = " ".join(str(error).split())
    except Exception:  # an exception's own __str__
        line = ""
    line = line.encode(errors="backslashreplace").decode()
    if not line and isinstance(error, BaseException):
        line = type(error).__name__
    return line if len(line) <= most else line[: most - 3] + "..."

"""The server's options that its models are not told, read from its command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (compared with, not bound)
_EXIT_TIMEOUT_SECONDS = 30  # Triton's default
# For the end of an engine; then it is killed. On a busy CPU a worker that is not a fork takes 4 s
# to leave, and the engine core waits for it.
_MOST_ENGINE_SECONDS = 10.0
_LEAST_ENGINE_SECONDS = 3.0
# For all else in a stop: to notice SIGTERM, and from the engine's end to Triton's. On two idle CPUs
# that takes 2 s, and 1.5 for each front end, since they end one after the other.
_STOP_SECONDS, _FRONT_END_SECONDS = 4, 2


def _parent_command() -> Path:
    return Path(f"/proc/{os.getppid()}/cmdline")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of tritonserver that concern a model.

    ``http`` is the address and port of its HTTP service, None if that is off. ``metrics`` is false
    with ``--allow-metrics=false``, where Triton accepts custom metrics but does not serve them.
    ``exit_timeout_seconds`` is the time that models have to stop at SIGTERM.
    ``header_patterns`` are regular expressions of the headers that it forwards to its models.
    """

    http: tuple[str, int] | None = None
    metrics: bool = True
    exit_timeout_seconds: int = _EXIT_TIMEOUT_SECONDS
    header_patterns: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> ServerOptions:
        """Read the command line of this process's parent; defaults where it is no tritonserver."""
        try:
            program, *arguments = _parent_command().read_text(errors="replace").split("\0")
        except OSError:
            return cls()
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--allow-metrics", nargs="?", default="true")
        parser.add_argument("--allow-http", nargs="?", default="true")
        parser.add_argument("--http-address", default="0.0.0.0")  # noqa: S104 (Triton's default)
        parser.add_argument("--http-port", default="8000")
        parser.add_argument("--exit-timeout-secs", default=str(_EXIT_TIMEOUT_SECONDS))
        parser.add_argument("--http-header-forward-pattern", default="")
        parser.add_argument("--grpc-header-forward-pattern", default="")
        given, _ = parser.parse_known_args(arguments)
        serves_http = _is_true(given.allow_http) and Path(program).name.startswith("tritonserver")
        address = _ANY_ADDRESS.get(given.http_address, given.http_address)
        patterns = given.http_header_forward_pattern, given.grpc_header_forward_pattern
        return cls(
            http=(address, int(given.http_port)) if serves_http else None,
            metrics=_is_true(given.allow_metrics),
            exit_timeout_seconds=int(given.exit_timeout_secs),
            header_patterns=tuple(filter(None, patterns)),
        )

    def drain_timeout_seconds(self, wanted: float, front_ends: int) -> float:
        """Return the operator's limit for running requests, or what the exit timeout leaves."""
        return max(1.0, min(wanted, self._seconds_left(front_ends) - _LEAST_ENGINE_SECONDS))

    def engine_seconds(self, drained: float, front_ends: int, *, stops: bool) -> float:
        """Return the time that an engine has to end, ``drained`` seconds after a drain began.

        ``stops``: it ends with the server, within the exit timeout; an unload has none.
        """
        if not stops:
            return _MOST_ENGINE_SECONDS
        left = self._seconds_left(front_ends) - drained
        return max(_LEAST_ENGINE_SECONDS, min(_MOST_ENGINE_SECONDS, left))

    def _seconds_left(self, front_ends: int) -> float:
        """Return what Triton and the front ends leave of the exit timeout."""
        return self.exit_timeout_seconds - _STOP_SECONDS - _FRONT_END_SECONDS * front_ends


def _is_true(text: str | None) -> bool:
    return str(text).lower() not in ("false", "0")

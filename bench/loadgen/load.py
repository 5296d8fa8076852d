"""The values of a measurement: the load on a server, and the outcome of each request."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROTOCOLS = ("triton-grpc", "triton-http", "openai")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request: a prompt, and how many tokens to generate for it."""

    text: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and how. ``address`` is host:port, ``protocol`` one of PROTOCOLS.

    ``sampling`` are further sampling parameters. With ``count_tokens`` the server is asked how many
    tokens it made; else each complete answer counts as what was asked for, which is right where
    ``ignore_eos`` is set, and spares Triton a tensor in each response.
    """

    address: str
    protocol: str
    model: str
    stream: bool = True
    sampling: Mapping[str, Any] = field(default_factory=dict)
    count_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask of a target.

    Closed loop (``rate`` 0): ``streams`` workers, each with one request under way at a time. Open
    loop: ``rate`` requests/s, at random times (``poisson``) or even ones, whatever the answers, on
    ``streams`` connections at most. After ``seconds`` no more requests are sent; what is under way
    then has ``patience`` more seconds.
    """

    target: Target
    prompts: tuple[Prompt, ...]
    streams: int
    rate: float = 0.0
    poisson: bool = True
    seconds: float = 600.0
    patience: float = 120.0
    seed: int = 0


@dataclass(slots=True)
class Record:
    """What came of one request. Times are those of ``time.monotonic``, one clock on one machine.

    ``due`` is when the request was to be sent: in the open loop it may have been sent later, when
    all connections were busy, and the wait counts. ``times`` has one entry for each message with
    text.
    """

    due: float
    times: array[float] = field(default_factory=lambda: array("d"))
    done: float = 0.0
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client process brings home. ``cpu_seconds`` it used in ``wall_seconds``."""

    records: tuple[Record, ...]
    cpu_seconds: float
    wall_seconds: float


class RequestFailed(Exception):  # noqa: N818 (as in client.py)
    """One request got no complete answer; its connection cannot be used again."""


class ClientError(Exception):
    """A client process failed."""

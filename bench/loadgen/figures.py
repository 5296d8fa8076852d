"""Computes the figures of a run from its records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from loadgen.load import Outcome, Record

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run, over the requests that were answered completely. Times are in ms.

    ``ttft_ms`` is the time to the first message with text, from when the request was due;
    ``gap_ms`` the time between messages of one answer; ``latency_ms`` the time to the end.
    ``messages_per_request`` counts messages with text. ``client_cpu`` is the CPU time of the
    busiest client process by wall time: near 1, the client is the bottleneck.
    ``client_us_per_message`` is CPU time of all of them.
    """

    requests: int
    failed: int
    errors: dict[str, int]
    seconds: float
    output_tokens: int
    tokens_per_second: float
    requests_per_second: float
    messages_per_second: float
    messages_per_request: float
    ttft_ms: dict[str, float]
    gap_ms: dict[str, float]
    latency_ms: dict[str, float]
    client_cpu: float
    client_cpu_total: float
    client_us_per_message: float

    def as_dict(self) -> dict[str, Any]:
        """Return them for JSON."""
        return asdict(self)


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """Return the figures of the outcomes of all client processes."""
    records = [record for outcome in outcomes for record in outcome.records]
    complete = [record for record in records if not record.error]
    # Like a stopwatch: from the first request to the last answer.
    begin = min((r.due for r in records), default=0.0)
    seconds = max((r.done for r in complete), default=begin) - begin
    messages = sum(len(r.times) for r in complete)
    tokens = sum(r.tokens for r in complete)
    gaps = [b - a for r in complete for a, b in pairwise(r.times)]
    used = sum(o.cpu_seconds for o in outcomes)
    return Figures(
        requests=len(complete),
        failed=len(records) - len(complete),
        errors=_errors(records),
        seconds=round(seconds, 3),
        output_tokens=tokens,
        tokens_per_second=_ratio(tokens, seconds, 1),
        requests_per_second=_ratio(len(complete), seconds, 3),
        messages_per_second=_ratio(messages, seconds, 1),
        messages_per_request=_ratio(messages, len(complete), 1),
        ttft_ms=quantiles([r.times[0] - r.due for r in complete]),
        gap_ms=quantiles(gaps),
        latency_ms=quantiles([r.done - r.due for r in complete]),
        client_cpu=max((_ratio(o.cpu_seconds, o.wall_seconds, 3) for o in outcomes), default=0.0),
        client_cpu_total=_ratio(used, max((o.wall_seconds for o in outcomes), default=0.0), 3),
        client_us_per_message=_ratio(used * 1e6, messages, 1),
    )


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in ms; an empty mapping if there are no values."""
    ranked = sorted(seconds)
    return {
        name: round(ranked[max(0, math.ceil(q * len(ranked)) - 1)] * 1e3, 3)
        for name, q in _QUANTILES.items()
        if ranked
    }


def _errors(records: Sequence[Record]) -> dict[str, int]:
    """Return the five most frequent errors and their counts."""
    return dict(Counter(r.error for r in records if r.error).most_common(5))


def _ratio(a: float, b: float, digits: int) -> float:
    return round(a / b, digits) if b else 0.0

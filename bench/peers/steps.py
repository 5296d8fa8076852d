"""The steps of an engine, from its metrics: how many, and how many of them computed prompts."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass

_SAMPLE = re.compile(
    r'^vllm:iteration_tokens_total_(count|bucket)\{(?:.*le="([^"]+)")?.*\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps so far, of all engines: in all, and by the most tokens that each computed."""

    total: float
    of_at_most: dict[float, float]

    def above(self, tokens: int) -> float:
        """Return how many had more tokens; a step of decoding alone has one for each stream.

        vLLM's buckets are powers of two: the next one at or above ``tokens`` is taken.
        """
        bounds = [bound for bound in self.of_at_most if bound >= tokens]
        return self.total - self.of_at_most[min(bounds)] if bounds else 0.0


def steps_of(address: str) -> Steps | None:
    """Return the steps that the metrics at ``address``, host:port, tell of; None without any."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    total, buckets = 0.0, dict[float, float]()
    found = _SAMPLE.findall(text)
    for kind, bound, value in found:
        if kind == "count":
            total += float(value)
        else:
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + float(value)
    return Steps(total, buckets) if found else None


def between(before: Steps | None, after: Steps | None, streams: int) -> dict[str, float]:
    """Return the ``engine_steps`` of a measurement, and those with more tokens than streams.

    Those have computed prompts, too. Nothing where a server does not tell.
    """
    if before is None or after is None or after.total <= before.total:
        return {}
    steps = after.total - before.total
    return {"engine_steps": steps, "prompt_steps": after.above(streams) - before.above(streams)}

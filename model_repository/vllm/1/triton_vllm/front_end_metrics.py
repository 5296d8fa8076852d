"""What a front end counts of itself, beside what vLLM counts.

Nobody shares a counter: each sender thread adds to a ``Traffic`` of its own, the event loop to its
``LoopLag``, and the export reads them all now and then. An addition is all that a token pays.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = ("ok", "client_error", "refused", "cancelled", "deadline", "engine_error")
_LAG_PERIOD = 0.25  # seconds


@dataclass(slots=True)
class Traffic:
    """What one sender thread has sent. Only that thread writes.

    ``seconds`` were spent on making responses and handing them to the server. ``merged_deltas``
    had to travel with the one before. ``outcomes`` counts the requests that ended.
    """

    responses: int = 0
    merged_deltas: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


class LoopLag:
    """How late the event loop comes to what is due: what every token waits for.

    ``last_beat`` is the Unix time at which the loop was last seen alive.
    """

    def __init__(self) -> None:
        self._worst = 0.0
        self.last_beat = time.time()

    async def measure(self) -> None:
        """Measure for ever. A coroutine of the loop in question."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_PERIOD
            await asyncio.sleep(_LAG_PERIOD)
            self._worst = max(self._worst, loop.time() - due)
            self.last_beat = time.time()

    def take_worst(self) -> float:
        """Return the worst lag in seconds since the last call."""
        worst, self._worst = self._worst, 0.0
        return worst


class FrontEndMetrics:
    """A collector of ``prometheus_client``: reads the sources when it is asked."""

    def __init__(
        self,
        index: int,
        traffic: Sequence[Traffic],
        lag: LoopLag,
        engine_up: Callable[[], bool],
        restarts: Callable[[], int],
        gave_up: Callable[[], bool],
        front_ends: Callable[[], int] | None,
    ) -> None:
        """``front_ends`` tells how many live; only the front end that knows has it."""
        self._index = str(index)
        self._traffic = traffic
        self._lag = lag
        self._engine_up = engine_up
        self._restarts = restarts
        self._gave_up = gave_up
        self._front_ends = front_ends

    def collect(self) -> Iterator[Any]:
        """Yield ``prometheus_client`` families, labelled with the front end's number."""
        yield self._counter(
            "responses", "Responses sent to clients.", sum(t.responses for t in self._traffic)
        )
        yield self._counter(
            "merged_deltas",
            "Deltas that travelled in the response of the one before, as sending lagged.",
            sum(t.merged_deltas for t in self._traffic),
        )
        yield self._counter(
            "send_seconds",
            "Seconds that sender threads spent on making and sending responses.",
            sum(t.seconds for t in self._traffic),
        )
        yield self._counter(
            "engine_restarts", "Restarts of an engine that had died.", self._restarts()
        )
        yield self._outcomes()
        yield self._gauge(
            "event_loop_lag_seconds",
            "The event loop's worst lag since the last export.",
            self._lag.take_worst(),
        )
        yield self._gauge(
            "heartbeat_timestamp_seconds",
            "Unix time at which the event loop was last seen alive. Triton keeps the metrics of a "
            "process that was killed: that this stands still tells.",
            self._lag.last_beat,
        )
        yield self._gauge(
            "engine_up",
            "1 while this front end has an engine that serves, else 0.",
            int(self._engine_up()),
        )
        yield self._gauge(
            "engine_gave_up",
            "1 once an engine that died is not started again: a restart of the server does it.",
            int(self._gave_up()),
        )
        if self._front_ends is not None:
            yield self._gauge("front_ends", "Front ends that are alive.", self._front_ends())

    def _counter(self, name: str, documentation: str, value: float) -> Any:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(f"triton_vllm:{name}", documentation, labels=["front_end"])
        family.add_metric([self._index], value)
        return family

    def _gauge(self, name: str, documentation: str, value: float) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(f"triton_vllm:{name}", documentation, labels=["front_end"])
        family.add_metric([self._index], value)
        return family

    def _outcomes(self) -> Any:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(
            "triton_vllm:requests",
            "Requests that ended, by outcome.",
            labels=["front_end", "outcome"],
        )
        for outcome in OUTCOMES:
            number = sum(t.outcomes[outcome] for t in self._traffic)
            family.add_metric([self._index, outcome], number)
        return family

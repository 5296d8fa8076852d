"""The collector that exports what a front end counts of itself, beside vLLM's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from triton_vllm.counters import OUTCOMES, LoopLag, Traffic


class FrontEndMetrics:
    """A collector of ``prometheus_client``: reads the sources when it is asked."""

    def __init__(
        self,
        index: int,
        traffic: Sequence[Traffic],
        lag: LoopLag,
        engine_up: Callable[[], bool],
        restarts: Callable[[], int],
        restarts_exhausted: Callable[[], bool],
        front_ends: Callable[[], int] | None,
        schema_violations: Mapping[str, int],
    ) -> None:
        """``front_ends`` tells how many live; only the front end that knows has it."""
        self._index = str(index)
        self._traffic = traffic
        self._lag = lag
        self._engine_up = engine_up
        self._restarts = restarts
        self._restarts_exhausted = restarts_exhausted
        self._front_ends = front_ends
        self._schema_violations = schema_violations

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
        yield self._by_label(
            "requests",
            "Requests that ended, by outcome.",
            "outcome",
            {name: sum(t.outcomes[name] for t in self._traffic) for name in OUTCOMES},
        )
        yield self._by_label(
            "schema_violations",
            "Violations of JSON schemas in checked answers, by keyword.",
            "keyword",
            dict(self._schema_violations),
        )
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
            "engine_failed",
            "1 once an engine that died is not started again: a restart of the server does it.",
            int(self._restarts_exhausted()),
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

    def _by_label(
        self, name: str, documentation: str, label: str, values: Mapping[str, float]
    ) -> Any:
        from prometheus_client.core import CounterMetricFamily

        labels = ["front_end", label]
        family = CounterMetricFamily(f"triton_vllm:{name}", documentation, labels=labels)
        for value, number in values.items():
            family.add_metric([self._index, value], number)
        return family

"""The collector of what a front end counts itself, beside vLLM's own metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from triton_vllm.counters import OUTCOMES, LoopLag, Traffic

Row = tuple[str, str, float]  # name, documentation, value


class FrontEndMetrics:
    """A collector of ``prometheus_client``. It reads its sources when Prometheus' export asks."""

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
        """``front_ends`` returns how many are alive; None in all front ends but the leader."""
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
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def family(kind: Any, name: str, text: str, values: Mapping[str, float], label: str) -> Any:
            labels = ["front_end", label] if label else ["front_end"]
            made = kind(f"triton_vllm:{name}", text, labels=labels)
            for value, number in values.items():
                made.add_metric([self._index, value][: len(labels)], number)
            return made

        for kind, rows in (
            (CounterMetricFamily, self._counters()),
            (GaugeMetricFamily, self._gauges()),
        ):
            for name, text, number in rows:
                yield family(kind, name, text, {"": number}, "")
        outcomes = {name: sum(t.outcomes[name] for t in self._traffic) for name in OUTCOMES}
        text = "Requests that ended, by outcome."
        yield family(CounterMetricFamily, "requests", text, outcomes, "outcome")
        violations = dict(self._schema_violations)
        text = "Violations of JSON schemas in checked answers, by keyword."
        yield family(CounterMetricFamily, "schema_violations", text, violations, "keyword")

    def _counters(self) -> list[Row]:
        traffic = self._traffic
        return [
            ("responses", "Responses sent to clients.", sum(t.responses for t in traffic)),
            (
                "merged_deltas",
                "Deltas that were sent in the response of the previous one, as sending lagged.",
                sum(t.merged_deltas for t in traffic),
            ),
            (
                "send_seconds",
                "Seconds that sender threads spent on making and sending responses.",
                sum(t.seconds for t in traffic),
            ),
            ("engine_restarts", "Restarts of an engine that had died.", self._restarts()),
        ]

    def _gauges(self) -> list[Row]:
        rows: list[Row] = [
            (
                "event_loop_lag_seconds",
                "The event loop's worst lag since the last export.",
                self._lag.take_worst(),
            ),
            (
                "heartbeat_timestamp_seconds",
                "Unix time at which the event loop last ran. Triton keeps the metrics of a killed "
                "process: a value that no longer changes shows it.",
                self._lag.last_heartbeat,
            ),
            (
                "engine_up",
                "1 while this front end has a serving engine, else 0.",
                self._engine_up(),
            ),
            (
                "engine_failed",
                "1 once no attempt to restart a dead engine is left: restart the server.",
                self._restarts_exhausted(),
            ),
        ]
        if self._front_ends is not None:
            rows.append(("front_ends", "Front ends that are alive.", self._front_ends()))
        return rows

"""The collector of what a front end counts itself, beside vLLM's own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triton_vllm.counters import OUTCOMES, Traffic

if TYPE_CHECKING:
    from triton_vllm.engine.engine import Engine

Row = tuple[str, str, float | Mapping[str, float]]  # name, documentation, value or values by label
_LABELS = {"requests": "outcome", "schema_violations": "keyword"}


class FrontEndMetrics:
    """A collector of ``prometheus_client``. It reads its sources when Prometheus' export asks."""

    def __init__(self, engine: Engine, traffic: Sequence[Traffic]) -> None:
        """``traffic`` is that of the sender threads."""
        self._engine = engine
        self._traffic = [*traffic, engine.openai.traffic]

    def collect(self) -> Iterator[Any]:
        """Yield ``prometheus_client`` families, labelled with the front end's number."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        index = str(self._engine.plan.slot.index)
        kinds = ((CounterMetricFamily, self._counters()), (GaugeMetricFamily, self._gauges()))
        for kind, name, text, value in ((kind, *row) for kind, rows in kinds for row in rows):
            labels = ["front_end", _LABELS[name]] if name in _LABELS else ["front_end"]
            family = kind(f"triton_vllm:{name}", text, labels=labels)
            values = value if isinstance(value, Mapping) else {"": value}
            for label, number in values.items():
                family.add_metric([index, label][: len(labels)], number)
            yield family

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
            (
                "http_wait_seconds",
                "Seconds that sender threads waited for Triton's HTTP to take earlier responses.",
                sum(t.http_wait_seconds for t in traffic),
            ),
            ("engine_restarts", "Restarts of an engine that had died.", self._engine.restarts),
            (
                "requests",
                "Requests that ended, by outcome.",
                {name: sum(t.outcomes[name] for t in traffic) for name in OUTCOMES},
            ),
            (
                "schema_violations",
                "Violations of JSON schemas in checked answers, by keyword.",
                self._engine.answers.found.copy(),
            ),
        ]

    def _gauges(self) -> Iterator[Row]:
        engine = self._engine
        lag, slot = engine.lag, engine.plan.slot
        text = "The event loop's worst lag since the last export."
        yield "event_loop_lag_seconds", text, lag.take_worst()
        text = "Unix time at which the event loop last ran. Triton keeps the metrics of a killed "
        text += "process: a value that no longer changes shows it."
        yield "heartbeat_timestamp_seconds", text, lag.last_heartbeat
        text = "1 while this front end has a serving engine, else 0."
        yield "engine_up", text, engine.is_up
        text = "1 once no attempt to restart a dead engine is left: restart the server."
        yield "engine_failed", text, engine.restarts_exhausted
        if slot.is_leader:
            yield "front_ends", "Front ends that are alive.", slot.occupied()

"""The export of Prometheus metrics to Triton, and what a front end counts of itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as PrometheusCounter

from tests.unit.fakes import FakeFamilies, counted_engine, logged
from triton_vllm.counters import OUTCOMES, LoopLag, Traffic
from triton_vllm.metrics.export import MetricsExport
from triton_vllm.metrics.front_end import FrontEndMetrics

PERIOD = 0.01


@pytest.fixture
def families() -> FakeFamilies:
    return FakeFamilies()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def export(families: FakeFamilies, registry: CollectorRegistry) -> Iterator[MetricsExport]:
    export = MetricsExport(
        SimpleNamespace(MetricFamily=families), [registry], {"model": "m"}, PERIOD
    )
    yield export
    export.stop()


def test_counters_and_gauges_are_carried_under_their_names(
    families: FakeFamilies, registry: CollectorRegistry, export: MetricsExport
) -> None:
    """A counter keeps its kind, name, labels and value; so does a gauge; ours are added."""
    PrometheusCounter("vllm:tokens", "Tokens.", ["engine"], registry=registry).labels("0").inc(7)
    Gauge("vllm:running", "Running.", ["engine"], registry=registry).labels("0").set(3)
    export.stop()
    assert {"vllm:tokens_total": "counter", "vllm:running": "gauge"} == {
        name: kind for name, (kind, _) in families.made.items()
    }
    assert 7 == families.value("vllm:tokens_total", engine="0", model="m")
    assert 3 == families.value("vllm:running", engine="0", model="m")


def test_a_histogram_is_carried_as_what_prometheus_stores(
    families: FakeFamilies, registry: CollectorRegistry, export: MetricsExport
) -> None:
    """Cumulative buckets, sum and count, each a counter."""
    histogram = Histogram("vllm:seconds", "Seconds.", buckets=[1, 2], registry=registry)
    for value in (0.5, 1.5, 1.5, 9):
        histogram.observe(value)
    export.stop()
    buckets = {m.labels["le"]: m.value for m in families.made["vllm:seconds_bucket"][1]}
    assert {"1.0": 1, "2.0": 3, "+Inf": 4} == buckets
    assert 4 == families.value("vllm:seconds_count")
    assert 12.5 == families.value("vllm:seconds_sum")
    assert {"counter"} == {kind for kind, _ in families.made.values()}


def test_only_changes_are_sent(
    families: FakeFamilies, registry: CollectorRegistry, export: MetricsExport
) -> None:
    """A metric that stands still costs no call to the server."""
    counter = PrometheusCounter("vllm:tokens", "Tokens.", registry=registry)
    counter.inc(2)
    wait_for(lambda: "vllm:tokens_total" in families.made)
    time.sleep(10 * PERIOD)
    counter.inc(3)
    export.stop()
    ((_, (metric,)),) = families.made.values()
    assert (5, 2) == (metric.value, metric.calls)


def test_a_counter_that_starts_anew_goes_on(
    families: FakeFamilies, registry: CollectorRegistry, export: MetricsExport
) -> None:
    """After the engine was rebuilt vLLM counts from zero; the exported counter does not go back."""
    first = PrometheusCounter("vllm:tokens", "Tokens.", registry=registry)
    first.inc(10)
    wait_for(lambda: "vllm:tokens_total" in families.made)
    wait_for(lambda: families.value("vllm:tokens_total") == 10)
    registry.unregister(first)
    PrometheusCounter("vllm:tokens", "Tokens.", registry=registry).inc(4)
    export.stop()
    assert 14 == families.value("vllm:tokens_total")


def test_one_thread_touches_the_metrics(
    families: FakeFamilies, registry: CollectorRegistry, export: MetricsExport
) -> None:
    """Only the export's own thread calls Triton, which allows one thread for each metric."""
    counter = PrometheusCounter("vllm:tokens", "Tokens.", registry=registry)
    threads = [threading.Thread(target=counter.inc) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    export.stop()
    ((_, (metric,)),) = families.made.values()
    assert (20, {"metrics"}) == (metric.value, metric.threads)


def test_a_lasting_failure_is_told_once(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Triton takes no metrics, one line says so."""

    def refuse(**family: str) -> None:
        raise RuntimeError("no metrics here")

    PrometheusCounter("vllm:tokens", "Tokens.", registry=registry)
    refuse.COUNTER = refuse.GAUGE = "any"  # type: ignore[attr-defined]
    export = MetricsExport(SimpleNamespace(MetricFamily=refuse), [registry], {}, PERIOD)
    time.sleep(5 * PERIOD)
    export.stop()
    assert [("WARNING", "metrics not exported: no metrics here")] == logged(caplog)


def test_a_passing_failure_ends_nothing(
    families: FakeFamilies, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read for a moment, as a file that is being written, is read later."""
    PrometheusCounter("vllm:tokens", "Tokens.", registry=registry).inc(7)
    failures = iter([OSError("half a file")])

    class Shaky:
        def collect(self) -> Iterable[Any]:
            for failure in failures:
                raise failure
            return registry.collect()

    export = MetricsExport(
        SimpleNamespace(MetricFamily=families), [Shaky()], {"model": "m"}, PERIOD
    )
    while not families.made:
        time.sleep(PERIOD)
    export.stop()
    assert 7 == families.value("vllm:tokens_total", model="m")
    assert [("WARNING", "metrics not exported: half a file")] == logged(caplog)


def test_a_front_end_counts_over_its_threads(families: FakeFamilies) -> None:
    """Each sender thread has its own counts; what is exported is their sum, by front end."""
    one = Traffic(responses=3, merged_deltas=1, seconds=0.5, http_wait_seconds=0.125)
    two = Traffic(responses=4, merged_deltas=2, seconds=0.25)
    one.outcomes["ok"] += 2
    two.outcomes["ok"] += 1
    two.outcomes["cancelled"] += 1
    answers = SimpleNamespace(found=Counter(minimum=5))
    own = FrontEndMetrics(counted_engine(1, restarts=2, answers=answers), [one, two])
    MetricsExport(SimpleNamespace(MetricFamily=families), [own], {}, PERIOD).stop()
    name = "triton_vllm:"
    assert 7 == families.value(name + "responses_total", front_end="1")
    assert 3 == families.value(name + "merged_deltas_total")
    assert 0.75 == families.value(name + "send_seconds_total")
    assert 0.125 == families.value(name + "http_wait_seconds_total")
    assert 1 == families.value(name + "engine_up")
    assert 2 == families.value(name + "engine_restarts_total")
    assert 0 == families.value(name + "engine_failed")
    assert 4 == families.value(name + "front_ends")
    assert 5 == families.value(name + "schema_violations_total", keyword="minimum")
    expected = dict.fromkeys(OUTCOMES, 0) | {"ok": 3, "cancelled": 1}
    outcomes = families.made[name + "requests_total"][1]
    assert expected == {m.labels["outcome"]: m.value for m in outcomes}


def test_only_the_leader_counts_front_ends(families: FakeFamilies) -> None:
    """A front end that does not know how many there are exports no number."""
    engine = counted_engine(1, leads=False, is_up=False, restarts_exhausted=True)
    own = FrontEndMetrics(engine, [])
    MetricsExport(SimpleNamespace(MetricFamily=families), [own], {}, PERIOD).stop()
    assert "triton_vllm:front_ends" not in families.made
    assert 0 == families.value("triton_vllm:engine_up")
    assert 1 == families.value("triton_vllm:engine_failed")


def test_the_lag_is_the_worst_since_it_was_last_taken() -> None:
    """A loop that is blocked for a while is late by as much, and is reported once."""
    lag = LoopLag()

    async def block() -> None:
        measuring = asyncio.create_task(lag.measure())
        await asyncio.sleep(0)
        time.sleep(0.45)  # noqa: ASYNC251 (that is the fault)
        await asyncio.sleep(0.05)
        measuring.cancel()

    asyncio.run(block())
    assert 0.15 < lag.take_worst() < 1
    assert 0 == lag.take_worst()


def wait_for(condition: Any, seconds: float = 5) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(PERIOD)

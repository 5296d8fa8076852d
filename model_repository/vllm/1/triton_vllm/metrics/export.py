"""Exports Prometheus metrics to Triton's own /metrics.

vLLM's Prometheus logger counts into a registry of ``prometheus_client`` in this process. One thread
reads the registry at an interval and passes on to Triton what has changed. So every family of every
vLLM version is exported under vLLM's name and labels, and no token costs a call to the server.

Triton can only ``observe`` one value of a histogram at a time, at 137 µs each. A histogram is
therefore exported as Prometheus stores it: as the counters ``…_bucket``, ``…_count`` and ``…_sum``,
with which ``histogram_quantile`` and all dashboards work.

Triton 24.10 does not allow two threads to use one metric: only this thread does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triton_vllm.config.settings import ModelSettings
from triton_vllm.counters import Traffic
from triton_vllm.errors import one_line
from triton_vllm.metrics.front_end import FrontEndMetrics

if TYPE_CHECKING:
    from triton_vllm.engine.engine import Engine

logger = logging.getLogger(__name__)

Labels = tuple[tuple[str, str], ...]


def export_metrics(
    pb_utils: Any, settings: ModelSettings, engine: Engine, traffic: Sequence[Traffic]
) -> NoMetrics:
    """Start to export what vLLM and this front end count, unless metrics are off."""
    if not engine.plan.reports_metrics:
        return NoMetrics()
    labels = {"model": settings.name, "version": settings.version}
    if engine.plan.label:  # the model has several engines, and vLLM counts in each from 0
        labels["gpu_set"] = engine.plan.label
    collectors: list[Any] = [FrontEndMetrics(engine, traffic)]
    if engine.plan.slot.is_leader:  # it reads what all front ends count for vLLM
        collectors.append(engine.vllm_metrics())
    return MetricsExport(pb_utils, collectors, labels, settings.serving.metrics_interval_seconds)


class NoMetrics:
    """The export of a model whose metrics are off."""

    def stop(self) -> None:
        """Export once more, then end the thread."""


class MetricsExport(NoMetrics):
    """Keeps Triton's custom metrics equal to those of some registries, in its own thread."""

    def __init__(
        self,
        pb_utils: Any,
        registries: Sequence[Any],
        labels: Mapping[str, str],
        period: float,
    ) -> None:
        """Start to export every ``period`` seconds; ``labels`` are added to each metric.

        ``registries`` are collectors of ``prometheus_client``, such as its registry.
        """
        self._pb_utils = pb_utils
        self._registries = registries
        self._labels = dict(labels)
        self._period = period
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], tuple[Any, float]] = {}  # and their last values
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:  # noqa: D102 (as above)
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        complaint = ""
        while not stopping:
            stopping = self._stop.wait(self._period)
            failure = ""
            try:
                self._export()
            except Exception as error:
                # A passing error, such as a file that another front end is creating, must not end
                # the export; a lasting one must not fill the log.
                failure = one_line(error)
                if failure != complaint:
                    logger.warning(f"metrics not exported: {failure}")
            complaint = failure
        # In this thread, the only one that may use them.
        self._metrics.clear()
        self._families.clear()

    def _export(self) -> None:
        for registry in self._registries:
            for family in registry.collect():
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        self._export_sample(family, sample)

    def _export_sample(self, family: Any, sample: Any) -> None:
        is_gauge = family.type in ("gauge", "info")
        key = (sample.name, tuple(sorted(sample.labels.items())))
        if key not in self._metrics:
            self._metrics[key] = self._create(family, sample, is_gauge=is_gauge), 0.0
        metric, before = self._metrics[key]
        if is_gauge:
            if sample.value != before:
                metric.set(sample.value)
        # A lower counter was restarted, with the engine.
        elif added := sample.value - (before if sample.value >= before else 0):
            metric.increment(added)
        self._metrics[key] = metric, sample.value

    def _create(self, family: Any, sample: Any, *, is_gauge: bool) -> Any:
        kinds = self._pb_utils.MetricFamily
        if sample.name not in self._families:
            # Triton forgets a family whose object is gone.
            self._families[sample.name] = kinds(
                name=sample.name,
                description=family.documentation or sample.name,
                kind=kinds.GAUGE if is_gauge else kinds.COUNTER,
            )
        labels = {**sample.labels, **self._labels}
        return self._families[sample.name].Metric(labels=labels)

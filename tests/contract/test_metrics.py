"""What is exported, against what vLLM's own Prometheus logger registers: nothing is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import IterationStats

from tests.unit.fakes import FakeFamilies
from triton_vllm.metrics.export import MetricsExport
from triton_vllm.vllm_api import api as vllm_api

CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", Path(__file__).parents[2] / ".cache"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
OURS = {"model": "m", "version": "1"}
# Prometheus stores a histogram as three counters, and an info as a gauge that is 1.
KINDS = {"counter": "counter", "histogram": "counter", "gauge": "gauge", "info": "gauge"}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "LoRA": {"enable_lora": True, "max_lora_rank": 8},
    "speculative decoding": {
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 2,
            "prompt_lookup_max": 2,
        }
    },
}


def logger_of(**features: Any) -> PrometheusStatLogger:
    """Return vLLM's own logger for the small model; it registers its families."""
    args = AsyncEngineArgs(model=str(CHECKPOINT), max_model_len=512, **features)
    return PrometheusStatLogger(vllm_api.create_config(args), [0])


@pytest.fixture(params=list(FEATURES.values()), ids=list(FEATURES))
def registered(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """The families that vLLM registers for a model with some features in use."""
    logger_of(**request.param)
    yield [family for family in REGISTRY.collect() if family.name.startswith("vllm:")]
    unregister_vllm_metrics()


def exported() -> FakeFamilies:
    """What Triton was given after one export."""
    families = FakeFamilies()
    pb_utils = SimpleNamespace(MetricFamily=families)
    MetricsExport(pb_utils, [vllm_api.Metrics()], OURS, 60).stop()
    return families


@pytest.fixture(autouse=True)
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The export logs what it cannot export: nothing."""
    yield
    assert [] == [record for record in caplog.records if record.name.startswith("triton_vllm")]


def series(samples: list[Any]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return name and labels, ``le`` among them, of every sample that Prometheus would store."""
    return {
        (sample.name, frozenset((sample.labels | OURS).items()))
        for sample in samples
        if not sample.name.endswith("_created")
    }


def test_every_series_of_vllm_is_exported(registered: list[Any]) -> None:
    """Names, labels and buckets are vLLM's, with the model's name and version added."""
    made = exported().made
    actual = {
        (name, frozenset(metric.labels.items())) for name, (_, ms) in made.items() for metric in ms
    }
    expected = set().union(*(series(family.samples) for family in registered))
    assert len(registered) > 30
    assert [] == sorted(map(str, expected - actual)), "missing"
    assert [] == sorted(map(str, actual - expected)), "not of this vLLM"


def test_every_family_keeps_its_kind(registered: list[Any]) -> None:
    """A gauge is a gauge; what Prometheus stores of a counter or a histogram is counters."""
    made = exported().made
    for family in registered:
        for name in {name for name, _ in series(family.samples)}:
            assert KINDS[family.type] == made[name][0], name


def test_a_histogram_has_its_buckets(registered: list[Any]) -> None:
    """The upper bounds of the first-token time are there, the last one infinite."""
    made = exported().made
    (family,) = (f for f in registered if f.name == "vllm:time_to_first_token_seconds")
    bounds = {s.labels["le"] for s in family.samples if s.name.endswith("_bucket")}
    assert "+Inf" in bounds
    assert bounds == {m.labels["le"] for m in made[f"{family.name}_bucket"][1]}


def test_counts_arrive() -> None:
    """What vLLM's logger records is what Triton is told."""
    logger = logger_of()
    try:
        stats = IterationStats()
        stats.num_generation_tokens = 7
        stats.time_to_first_tokens_iter = [0.003, 0.3]
        stats.iteration_timestamp = time.time()
        logger.record(scheduler_stats=None, iteration_stats=stats)
        families = exported()
        assert 7 == families.value("vllm:generation_tokens_total")
        assert 2 == families.value("vllm:time_to_first_token_seconds_count")
        assert 1 == families.value("vllm:time_to_first_token_seconds_bucket", le="0.005")
        assert 2 == families.value("vllm:time_to_first_token_seconds_bucket", le="+Inf")
    finally:
        unregister_vllm_metrics()

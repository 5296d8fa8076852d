"""deploy/kubernetes: monitoring and autoscaling fit deploy/monitoring and each other."""

from __future__ import annotations

import re

import pytest
import yaml

from tests import chart
from tests.chart import CASES, NAMESPACE, RELEASE, of_kind, rendered

all_cases = pytest.mark.parametrize("case", list(CASES))


def test_the_files_of_the_monitoring_are_not_copies() -> None:
    """Rules and dashboard come from deploy/monitoring, byte by byte."""
    alerts = chart.file_of("deploy/monitoring/alerts.yml")
    (rule,) = of_kind(rendered("all"), "PrometheusRule")
    assert yaml.safe_load(alerts) == rule["spec"]
    board = chart.file_of("deploy/monitoring/grafana/dashboards/vllm-on-triton.json")
    dashboard = chart.named(rendered("all"), f"{RELEASE}-dashboard")
    assert board.strip() == dashboard["data"]["vllm-on-triton.json"].strip()


def test_the_autoscalers_ask_for_metrics_that_are_there() -> None:
    """KEDA and the adapter name families of the dashboard, which the e2e tests run."""
    board = chart.file_of("deploy/monitoring/grafana/dashboards/vllm-on-triton.json")
    queries = chart.keda_queries(rendered("all"))
    assert 2 == len(queries)
    adapter = yaml.safe_load(chart.file_of("deploy/kubernetes/prometheus-adapter.yaml"))
    rules = adapter["rules"]["custom"]
    for query in [*queries, *(rule["seriesQuery"] for rule in rules)]:
        (family,) = re.findall(r"vllm:\w+", query)
        assert f"({family}" in board, family
        assert 'job="triton"' in query
    assert all(f'namespace="{NAMESPACE}"' in query for query in queries)
    (scaler,) = of_kind(rendered("ephemeral, hpa"), "HorizontalPodAutoscaler")
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {rule["name"]["as"] for rule in rules}


def test_the_monitor_gives_the_labels_that_are_asked_for() -> None:
    """The job of the alerts, and the release's label as Prometheus spells it."""
    (monitor,) = of_kind(rendered("all"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [{"action": "replace", "targetLabel": "job", "replacement": "triton"}] == (
        endpoint["relabelings"]
    )
    (label,) = monitor["spec"]["podTargetLabels"]
    spelt = re.sub(r"\W", "_", label)
    assert all(f'{spelt}="{RELEASE}"' in each for each in chart.keda_queries(rendered("all")))


@all_cases
def test_a_scaler_leaves_the_number_of_replicas_alone(case: str) -> None:
    """What is scaled exists, and sets no replicas of its own."""
    scalers = of_kind(rendered(case), "ScaledObject")
    scalers += of_kind(rendered(case), "HorizontalPodAutoscaler")
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if target["name"].endswith("-predictor"):
            (service,) = of_kind(rendered(case), "InferenceService")
            annotations = service["metadata"]["annotations"]
            assert "external" == annotations["serving.kserve.io/autoscalerClass"]
            continue
        (workload,) = of_kind(rendered(case), target["kind"])
        assert (workload["apiVersion"], workload["metadata"]["name"]) == (
            target["apiVersion"],
            target["name"],
        )
        assert "replicas" not in workload["spec"]

"""The values of the Helm chart: documented, and refused where they make no sense."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests import chart
from tests.chart import RELEASE

OPEN = {"engineArgs"}  # maps whose keys are not the chart's


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, default) for each value."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in OPEN | {"resources"}:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def test_the_table_lists_every_value_with_its_default() -> None:
    """docs/operations/kubernetes.md has a row for each value of values.yaml, and no other."""
    text = chart.file_of("docs/operations/kubernetes.md")
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| ", text, re.MULTILINE)
    expected = [(name, json.dumps(value)) for name, value in leaves(chart.values_of_chart())]
    assert expected == rows


def test_the_schema_knows_every_value() -> None:
    """values.schema.json closes every object of ours, and its keys are those of values.yaml."""

    def names(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for key, value in schema["properties"].items():
            if value.get("properties"):
                assert value["additionalProperties"] is False, f"{prefix}{key}"
                yield from names(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    known = set(names(schema)) - {"global"}  # Helm's own
    assert {name for name, _ in leaves(chart.values_of_chart())} == known


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"shutdown": {"drainSecond": 2}}, "additional properties 'drainSecond' not allowed"),
        ({"workload": "StatefulSet"}, "value must be one of"),
        ({"frontEnds": 0}, "minimum"),
        ({"engineArgs": {"model": ""}}, "minLength"),
        ({"sharedMemory": "1GB"}, "pattern"),
        ({"autoscaling": {"kvCacheUsage": "85"}}, "pattern"),
        ({"replicas": 2}, "cannot share a ReadWriteOnce volume"),
        ({"autoscaling": {"kind": "hpa"}}, "cannot share a ReadWriteOnce volume"),
        ({"cache": {"ephemeral": True, "existingClaim": "a"}}, "exclude each other"),
        (
            {"cache": {"ephemeral": True}, "workload": "LeaderWorkerSet"},
            "set engineArgs.distributed_executor_backend to ray",
        ),
        (
            {"engineArgs": {"serving": {"drain_timeout_seconds": 5}}},
            "set shutdown.drainSeconds instead",
        ),
        ({"engineArgs": {"serving": {"openai": {"port": 1}}}}, "set openai.enabled"),
        ({"extraArgs": ["--exit-timeout-secs=5"]}, "rely on the chart's own"),
        ({"extraArgs": ["--metrics-port=1"]}, "rely on the chart's own"),
        (
            {"openai": {"enabled": True}, "modelParameters": {"gpu_device_ids": "0;1"}},
            "several engines in a pod have a port each",
        ),
        ({"kserve": {"storageUri": "s3://a/b"}}, "only for workload KServe"),
        (
            {"cache": {"ephemeral": True}, "autoscaling": {"kind": "keda", "minReplicas": 9}},
            "minReplicas is above maxReplicas",
        ),
    ],
    ids=lambda each: json.dumps(each) if isinstance(each, dict) else "",
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], reason: str) -> None:
    """`helm install` says what is wrong before anything is created."""
    assert reason in chart.refusal(values)


def engine_args(values: dict[str, Any]) -> dict[str, Any]:
    """Return the model's vllm_engine_args.json."""
    model = chart.named(chart.render(values), f"{RELEASE}-model")
    read: dict[str, Any] = json.loads(model["data"]["vllm_engine_args.json"])
    return read


def test_the_engine_arguments_are_passed_on_as_they_are() -> None:
    """Numbers stay numbers, and what belongs to the shutdown and OpenAI's port is added."""
    assert engine_args(chart.CASES["all"]) == {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "max_model_len": 8192,
        "kv_cache_memory_bytes": 34359738368,
        "serving": {
            "max_concurrent_requests": 512,
            "drain_timeout_seconds": 20,
            "openai": {
                "port": 9000,
                "host": "0.0.0.0",
                "drain_timeout_seconds": 20,
                "api_keys_file": "/etc/triton_vllm/api_keys",
                "tool_call_parser": "llama3_json",
            },
        },
    }


def test_kserve_puts_the_weights_where_the_model_looks() -> None:
    """KServe's storage initializer writes to /mnt/models."""
    assert "/mnt/models" == engine_args(chart.CASES["kserve"])["model"]
    assert "facebook/opt-125m" == engine_args({"workload": "KServe"})["model"]


def test_a_changed_model_starts_new_pods() -> None:
    """A pod mounts the files once, so its annotations have their checksum."""
    sums = {
        pod["metadata"]["annotations"]["checksum/model"]
        for values in ({}, {"frontEnds": 2}, {"engineArgs": {"seed": 1}})
        for _, pod in chart.pods(chart.render(values))
    }
    assert 3 == len(sums)


def test_secrets_come_from_secrets() -> None:
    """Neither the hub's token nor the API keys are values of the chart."""
    ((_, pod),) = chart.pods(chart.render(chart.CASES["all"]))
    (container,) = pod["spec"]["containers"]
    (token,) = [each for each in container["env"] if each["name"] == "HF_TOKEN"]
    assert {"secretKeyRef": {"name": "hub", "key": "token"}} == token["valueFrom"]
    (keys,) = [each for each in pod["spec"]["volumes"] if each["name"] == "api-keys"]
    items = [{"key": "api-keys", "path": "api_keys"}]
    assert {"secretName": "keys", "defaultMode": 0o440, "items": items} == keys["secret"]

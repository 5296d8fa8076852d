"""The Helm chart of deploy/kubernetes, rendered by the real Helm."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.model_folder import CACHE, ROOT

CHART = ROOT / "deploy/kubernetes/triton-vllm"
PROGRAM = CACHE / "helm/helm"
RELEASE = "chat"
NAMESPACE = "models"

Object = dict[str, Any]

# Each feature in some case, and all that go together in one.
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {
        "replicas": 3,
        "image": {"repository": "registry.example/triton-vllm", "pullSecrets": [{"name": "pull"}]},
        "engineArgs": {
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "max_model_len": 8192,
            "kv_cache_memory_bytes": 34359738368,
            "serving": {
                "max_concurrent_requests": 512,
                "openai": {"tool_call_parser": "llama3_json"},
            },
        },
        "frontEnds": 4,
        "readOnlyRootFilesystem": False,
        "modelParameters": {"gpu_device_ids": "2,3"},
        "extraArgs": ["--log-verbose=1"],
        "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
        "openai": {"enabled": True, "apiKeysSecret": "keys"},
        "huggingFace": {"tokenSecret": "hub", "offline": True},
        "cache": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"},
        "autoscaling": {"kind": "keda", "minReplicas": 2, "maxReplicas": 8},
        "monitoring": {
            "podMonitor": True,
            "prometheusRule": True,
            "dashboard": True,
            "labels": {"release": "prometheus"},
        },
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {}}],
            "scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        },
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "podAnnotations": {"note": "x"},
        "podLabels": {"team": "y"},
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
    },
    "ephemeral, hpa": {"cache": {"ephemeral": True}, "autoscaling": {"kind": "hpa"}},
    "multi-node": {
        "workload": "LeaderWorkerSet",
        "replicas": 2,
        "multiNode": {"size": 4},
        "engineArgs": {
            "model": "deepseek-ai/DeepSeek-V3",
            "distributed_executor_backend": "ray",
            "tensor_parallel_size": 8,
            "pipeline_parallel_size": 4,
        },
        "resources": {"limits": {"nvidia.com/gpu": 8}},
        "cache": {"existingClaim": "weights", "accessModes": ["ReadWriteMany"]},
        "networkPolicy": {"enabled": True},
        "monitoring": {"podMonitor": True},
    },
    "multi-node, keda": {
        "workload": "LeaderWorkerSet",
        "engineArgs": {"distributed_executor_backend": "ray"},
        "cache": {"ephemeral": True},
        "autoscaling": {"kind": "keda"},
    },
    "kserve": {"workload": "KServe", "kserve": {"storageUri": "pvc://weights/llama"}},
    "kserve, keda": {
        "workload": "KServe",
        "cache": {"ephemeral": True},
        "autoscaling": {"kind": "keda"},
        "openai": {"enabled": True},
    },
}


def _helm(*arguments: str, values: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    assert PROGRAM.exists(), f"{PROGRAM} is missing: run scripts/get_helm.sh"
    return subprocess.run(
        [str(PROGRAM), *arguments, str(CHART), "--namespace", NAMESPACE, "--values", "-"],
        input=json.dumps(values),  # quoted: Helm reads a bare y as true
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def render(values: Mapping[str, Any]) -> list[Object]:
    """Return the objects that ``helm install`` would create."""
    done = _helm("template", RELEASE, values=values)
    assert 0 == done.returncode, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@functools.cache
def rendered(case: str) -> list[Object]:
    """Return the objects of a case, rendered once."""
    return render(CASES[case])


def lint(values: Mapping[str, Any]) -> str:
    """Return what ``helm lint --strict`` says; raise where it complains."""
    done = _helm("lint", "--strict", values=values)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def refusal(values: Mapping[str, Any]) -> str:
    """Return why ``helm install`` refuses the values."""
    done = _helm("template", RELEASE, values=values)
    assert 0 != done.returncode, done.stdout
    return done.stderr


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of a kind."""
    return [each for each in objects if each["kind"] == kind]


def named(objects: list[Object], name: str) -> Object:
    """Return the one object of a name that no other kind has."""
    (found,) = [each for each in objects if each["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yield (role, pod) for each kind of pod that would run, KServe's put together as it does."""
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Deployment":
            yield "server", _pod(spec["template"])
        elif each["kind"] == "LeaderWorkerSet":
            yield "server", _pod(spec["leaderWorkerTemplate"]["leaderTemplate"])
            yield "worker", _pod(spec["leaderWorkerTemplate"]["workerTemplate"])
        elif each["kind"] == "ServingRuntime":
            (service,) = of_kind(objects, "InferenceService")
            ours = {key: spec[key] for key in ("containers", "volumes")}
            rest = dict(service["spec"]["predictor"])
            for key in ("model", "minReplicas", "maxReplicas"):
                del rest[key]
            metadata = {key: spec[key] for key in ("labels", "annotations")}
            yield "server", _pod({"metadata": metadata, "spec": rest | ours})


def _pod(template: Object) -> Object:
    metadata = {"name": "pod", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def keda_queries(objects: list[Object]) -> list[str]:
    """Return the queries by which KEDA scales."""
    return [
        trigger["metadata"]["query"]
        for scaled in of_kind(objects, "ScaledObject")
        for trigger in scaled["spec"]["triggers"]
    ]


def values_of_chart() -> Object:
    """Return values.yaml."""
    loaded: Object = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def file_of(path: str | Path) -> str:
    """Return a file of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")

"""The operators' objects that the Helm chart renders: the fields of theirs that we know and use.

No package carries their definitions, so the tests check these lists. They are checked in turn, and
the objects with them, against the definitions themselves, from a cluster or a release's files:

    kubectl get crd --output yaml > crds/all.yaml
    python -m tests.chart_resources crds
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests import chart

_STRING, _INTEGER, _OBJECT = {"type": "string"}, {"type": "integer"}, {"type": "object"}


def _fields(required: str, optional: str = "", **known: Any) -> dict[str, Any]:
    """Return the schema of an object that has these fields and no others; strings if not known."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": {name: known.get(name, _STRING) for name in names},
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


_POD = {"type": "object"}  # validated as a pod by itself
_POLICIES = _list(_fields("type value periodSeconds", value=_INTEGER, periodSeconds=_INTEGER))
_SCALING = _fields(
    "policies",
    "stabilizationWindowSeconds",
    policies=_POLICIES,
    stabilizationWindowSeconds=_INTEGER,
)
_TRIGGER = _fields(
    "type metadata",
    "name metricType",
    type={"const": "prometheus"},
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=_fields("serverAddress query threshold"),
)
_ENDPOINT = _fields(
    "port",
    "path interval relabelings",
    relabelings=_list(_fields("action targetLabel replacement")),
)
_RULE = _fields("alert expr", "for labels annotations", labels=_OBJECT, annotations=_OBJECT)
_FORMAT = _fields("name", "version autoSelect", autoSelect={"type": "boolean"})

# What stands under "spec", by apiVersion and kind.
SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("keda.sh/v1alpha1", "ScaledObject"): _fields(
        "scaleTargetRef triggers",
        "minReplicaCount maxReplicaCount pollingInterval fallback advanced",
        scaleTargetRef=_fields("name", "apiVersion kind"),
        minReplicaCount=_INTEGER,
        maxReplicaCount=_INTEGER,
        pollingInterval=_INTEGER,
        fallback=_fields(
            "failureThreshold replicas",
            "behavior",
            failureThreshold=_INTEGER,
            replicas=_INTEGER,
            behavior={"enum": ["static", "currentReplicas", "currentReplicasIfHigher"]},
        ),
        advanced=_fields(
            "horizontalPodAutoscalerConfig",
            horizontalPodAutoscalerConfig=_fields(
                "behavior",
                behavior=_fields("scaleUp scaleDown", scaleUp=_SCALING, scaleDown=_SCALING),
            ),
        ),
        triggers=_list(_TRIGGER),
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): _fields(
        "selector podMetricsEndpoints",
        "podTargetLabels",
        selector=_fields("matchLabels", matchLabels=_OBJECT),
        podTargetLabels=_list(_STRING),
        podMetricsEndpoints=_list(_ENDPOINT),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _fields(
        "groups", groups=_list(_fields("name rules", rules=_list(_RULE)))
    ),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): _fields(
        "leaderWorkerTemplate",
        "replicas startupPolicy",
        replicas=_INTEGER,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        leaderWorkerTemplate=_fields(
            "workerTemplate",
            "leaderTemplate size restartPolicy",
            leaderTemplate=_POD,
            workerTemplate=_POD,
            size=_INTEGER,
            restartPolicy={"enum": ["Default", "RecreateGroupOnPodRestart", "None"]},
        ),
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): _fields(
        "containers",
        "volumes labels annotations supportedModelFormats protocolVersions",
        containers=_list(_OBJECT),
        volumes=_list(_OBJECT),
        labels=_OBJECT,
        annotations=_OBJECT,
        supportedModelFormats=_list(_FORMAT),
        protocolVersions=_list(_STRING),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): _fields(
        "predictor",
        predictor={
            "type": "object",
            "required": ["model"],
            "properties": {
                "model": _fields(
                    "modelFormat",
                    "runtime protocolVersion storageUri",
                    modelFormat=_fields("name"),
                ),
                "minReplicas": _INTEGER,
                "maxReplicas": _INTEGER,
            },
        },
    ),
}


def complaint(rendered: chart.Object) -> str:
    """Return what is wrong with an object of an operator's; empty: nothing."""
    schema = SPECS[rendered["apiVersion"], rendered["kind"]]
    return _complaint(rendered["spec"], schema)


def _complaint(value: Any, schema: dict[str, Any]) -> str:
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema).iter_errors(value)
    )
    return "" if error is None else f"{error.json_path}: {error.message}"


def definitions(folder: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield ((apiVersion, kind), schema) for each definition among the YAML files of a folder."""
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            for each in (document or {}).get("items", [document or {}]):
                if each.get("kind") != "CustomResourceDefinition":
                    continue
                spec = each["spec"]
                for version in spec["versions"]:
                    key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                    yield key, _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """Return a definition's schema in which an unknown field is an error, as for kubectl."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    whole = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not whole:
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


def main(folder: Path) -> int:
    """Check every object of every case against its definition; return how many are wrong."""
    known = dict(definitions(folder))
    wrong = 0
    for case, values in chart.CASES.items():
        for each in chart.render(values):
            key = (each["apiVersion"], each["kind"])
            if key in SPECS:
                schema = known[key]
                schema["properties"]["metadata"] = {}  # an object there, with no fields named
                said = _complaint(each, schema)
                wrong += bool(said)
                print(f"{case}: {key[0]} {key[1]}: {said or 'valid'}")
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(Path(sys.argv[1]))))

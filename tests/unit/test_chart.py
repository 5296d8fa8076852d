"""deploy/kubernetes: what the real Helm renders is valid, and fits the rest of the project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests import chart
from tests.chart import CASES, RELEASE, of_kind, rendered
from tests.chart_resources import complaint
from tests.e2e.model_folder import ROOT
from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings

# The oldest release that Chart.yaml allows, and the newest that the validator knows.
KUBERNETES = ("1.27", "1.37")
CORE = (
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Service",
)
PROBE = "/opt/triton_vllm/probe.py"


all_cases = pytest.mark.parametrize("case", list(CASES))


def test_helm_finds_nothing_to_complain_of() -> None:
    """`helm lint --strict` passes with the default values and with all features."""
    assert "0 chart(s) failed" in chart.lint({}) + chart.lint(CASES["all"])


@all_cases
def test_every_object_is_valid(case: str) -> None:
    """By Kubernetes' own schemas, and by what we know of the operators' fields."""
    for each in rendered(case):
        kind = each["kind"]
        if kind in CORE:
            for version in KUBERNETES:
                kubernetes_validate.validate(each, version, strict=True)
        else:
            assert "" == complaint(each)


@all_cases
def test_every_pod_is_valid_and_may_do_little(case: str) -> None:
    """Pods of every workload: not root, nothing to write but volumes, no token, no links."""
    found = list(chart.pods(rendered(case)))
    assert found
    for _, pod in found:
        for version in KUBERNETES:
            kubernetes_validate.validate(pod, version, strict=True)
        spec = pod["spec"]
        assert (False, False) == (spec["automountServiceAccountToken"], spec["enableServiceLinks"])
        assert {"runAsNonRoot": True, "fsGroup": 1000} == {
            key: spec["securityContext"][key] for key in ("runAsNonRoot", "fsGroup")
        }
        (container,) = spec["containers"]
        limits = container["securityContext"]
        read_only = CASES[case].get("readOnlyRootFilesystem", True)
        assert (1000, read_only) == (limits["runAsUser"], limits["readOnlyRootFilesystem"])
        assert {"drop": ["ALL"]} == limits["capabilities"]
        assert limits["allowPrivilegeEscalation"] is False
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/cache", "/tmp", "/dev/shm"} <= set(mounts)
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert set(mounts.values()) == set(volumes)
        assert "Memory" == volumes[mounts["/dev/shm"]]["emptyDir"]["medium"]


@all_cases
def test_selectors_match_the_pods_of_servers_only(case: str) -> None:
    """Services, budgets, monitors and Deployments find the servers, and no Ray workers."""
    labels = {role: pod["metadata"]["labels"] for role, pod in chart.pods(rendered(case))}
    selectors = []
    for each in rendered(case):
        if each["kind"] == "Service":
            selectors.append(each["spec"]["selector"])
        elif each["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            selectors.append(each["spec"]["selector"]["matchLabels"])
    for selector in selectors:
        assert selector.items() <= labels["server"].items()
        assert not selector.items() <= labels.get("worker", {}).items()
    assert selectors or case.startswith("kserve")


@all_cases
def test_ports_of_services_monitors_and_policies_exist(case: str) -> None:
    """A name of a port is one of the server's container; the metrics are in no Service."""
    ((_, pod), *_) = chart.pods(rendered(case))
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    services = of_kind(rendered(case), "Service")
    named = {port["targetPort"] for each in services for port in each["spec"]["ports"]}
    assert "metrics" not in named
    for each in of_kind(rendered(case), "PodMonitor"):
        named |= {endpoint["port"] for endpoint in each["spec"]["podMetricsEndpoints"]}
    for each in of_kind(rendered(case), "NetworkPolicy"):
        named |= {
            port["port"] for rule in each["spec"]["ingress"] for port in rule.get("ports", [])
        }
    assert set() == named - ports


@all_cases
def test_the_grace_period_covers_the_drain(case: str, tmp_path: Path) -> None:
    """Drain < Triton's exit timeout < the kubelet's patience, by the model's own arithmetic."""
    wanted = {**chart.values_of_chart()["shutdown"], **CASES[case].get("shutdown", {})}
    for role, pod in chart.pods(rendered(case)):
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        (stop,) = container["lifecycle"]["preStop"]["exec"]["command"][1:]
        if role == "worker":
            assert int(stop) == wanted["preStopSeconds"] + exit_timeout(case)
            assert int(stop) < spec["terminationGracePeriodSeconds"]
            continue
        server = ServerOptions(http=("127.0.0.1", 8000), exit_timeout_seconds=exit_timeout(case))
        settings = model_settings(case, tmp_path)
        drain = server.drain_timeout_seconds(
            settings.serving.drain_timeout_seconds, settings.placement.instances
        )
        assert wanted["drainSeconds"] == drain
        assert drain < server.exit_timeout_seconds
        over = spec["terminationGracePeriodSeconds"] - int(stop) - server.exit_timeout_seconds
        assert over >= 10


def exit_timeout(case: str) -> int:
    """Return what Triton is told."""
    ((_, pod), *_) = chart.pods(rendered(case))
    (option,) = (a for a in pod["spec"]["containers"][0]["args"] if "exit-timeout" in a)
    return int(option.removeprefix("--exit-timeout-secs="))


def model_settings(case: str, folder: Path) -> ModelSettings:
    """Read the model's two files as the model does."""
    model = chart.named(rendered(case), f"{RELEASE}-model")["data"]
    (folder / "vllm_engine_args.json").write_text(model["vllm_engine_args.json"])
    config = model.get("config.pbtxt", chart.file_of("model_repository/vllm/config.pbtxt"))
    (count,) = re.findall(r"instance_group \[ \{ count: (\d+) kind: KIND_MODEL", config)
    described = {
        "instance_group": [{"kind": "KIND_MODEL", "count": int(count)}],
        "model_transaction_policy": {"decoupled": True},
    }
    return ModelSettings.from_triton(
        {
            "model_repository": str(folder),
            "model_config": json.dumps(described),
            "model_name": "vllm",
            "model_version": "1",
        }
    )


@all_cases
def test_probes_run_a_file_that_the_image_has(case: str) -> None:
    """scripts/probe.py at its place in the image, with options that it knows."""
    dockerfile = chart.file_of("Dockerfile")
    assert f"COPY scripts/probe.py {Path(PROBE).parent}/\n" in dockerfile
    assert f"COPY --from=repository {Path(PROBE).parent} {Path(PROBE).parent}\n" in dockerfile
    ((_, pod), *_) = chart.pods(rendered(case))
    (container,) = pod["spec"]["containers"]
    probes = [container[f"{each}Probe"] for each in ("startup", "liveness", "readiness")]
    commands = [probe["exec"]["command"] for probe in probes]
    assert [["python3", PROBE]] * 3 == [command[:2] for command in commands]
    assert ["ready", "live", "ready"] == [command[2] for command in commands]
    for command in commands:
        # A server that is not there is a red probe, 1; options that are not known would be 2.
        words = [sys.executable, str(ROOT / "scripts/probe.py"), *command[2:]]
        nowhere = ["--metrics=127.0.0.1:1", "--http=127.0.0.1:1"]
        done = subprocess.run([*words, *nowhere], capture_output=True, timeout=60, check=False)
        assert (1, b"") == (done.returncode, done.stderr)
    age = chart.values_of_chart()["probes"]["maxAgeSeconds"]
    assert {f"--max-age={age}"} == {command[3] for command in commands}
    # The kubelet waits longer than the probe itself for its two answers.
    assert all(probe["timeoutSeconds"] > 2 * 5 for probe in probes)


def test_the_model_config_is_the_images_own(tmp_path: Path) -> None:
    """config.pbtxt as gen_vllm_env.sh settles it for the image, with the changed values only."""
    (tmp_path / "config.pbtxt").write_text(chart.file_of("model_repository/vllm/config.pbtxt"))
    settle = ["settle", "--stub", "none", "--format", "dir", "--model-dir", str(tmp_path)]
    subprocess.run([sys.executable, ROOT / "scripts/vllm_env.py", *settle], check=True)
    settled = (tmp_path / "config.pbtxt").read_text().replace("count: 1 ", "count: 4 ")
    given = chart.named(rendered("all"), f"{RELEASE}-model")["data"]["config.pbtxt"]
    head, _, tail = given.partition('\n\nparameters {\n  key: "gpu_device_ids"')
    assert settled.strip() == head.strip()
    assert 'value { string_value: "2,3" }' in tail
    assert "config.pbtxt" not in chart.named(rendered("default"), f"{RELEASE}-model")["data"]


@all_cases
def test_images_are_pinned_and_one_version_runs_through(case: str) -> None:
    """Without a tag it is the chart's appVersion, which is the project's version."""
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    (version,) = re.findall(r'^version = "(.*)"$', chart.file_of("pyproject.toml"), re.MULTILINE)
    assert version == about["appVersion"]
    images = {pod["spec"]["containers"][0]["image"] for _, pod in chart.pods(rendered(case))}
    assert 1 == len(images)
    assert images.pop().endswith(f"triton-vllm:{version}")


def test_the_workers_of_a_group_join_its_leader(tmp_path: Path) -> None:
    """What the two shells start, seen by programs in the place of Ray's Python and the server."""
    for name in ("python", "tritonserver"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $@ $RAY_ADDRESS"\n')
        program.chmod(0o755)
    variables = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VLLM_HOST_IP": "10.0.0.1"}
    started = {}
    for role, pod in chart.pods(rendered("multi-node")):
        (container,) = pod["spec"]["containers"]
        (shell, flags, script, *rest) = container["command"]
        script = script.replace("/models/vllm/vllm_env", str(tmp_path))
        done = subprocess.run(
            [shell, flags, script, *rest, *container.get("args", [])],
            env=variables | {"LWS_LEADER_ADDRESS": "leader"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        started[role] = done.stdout.splitlines()
    ray = "python -m ray.scripts.scripts"
    options = "--node-ip-address=10.0.0.1 --object-store-memory=536870912 --disable-usage-stats "
    assert started == {
        "server": [
            f"{ray} start --head --port=6379 --include-dashboard=false {options}",
            "tritonserver --model-store=/models --exit-timeout-secs=30 10.0.0.1:6379",
        ],
        "worker": [
            f"{ray} health-check --address=leader:6379 ",
            f"{ray} start --block --address=leader:6379 {options}",
        ],
    }
    (group,) = of_kind(rendered("multi-node"), "LeaderWorkerSet")
    assert 4 == group["spec"]["leaderWorkerTemplate"]["size"]

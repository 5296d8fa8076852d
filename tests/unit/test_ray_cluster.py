"""The gate before an engine whose workers Ray places, and the end of the wait for their places."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.topology import cluster, ray_cluster
from triton_vllm.topology.cluster import RayCluster
from triton_vllm.topology.ray_cluster import Placement

# What is asked of Ray; its real counterpart is in tests/e2e/test_cluster.py.
FAKE_RAY = """
import json, os, time
from pathlib import Path

def _state():
    return json.loads(Path({state!r}).read_text())

def is_initialized():
    return False

def wait(references, timeout):
    time.sleep(timeout / 10)
    return ([], references) if _state().get("pending") else (references, [])

def get(reference):
    return reference

def init(**options):
    assert options["address"] == "auto"
    if error := _state().get("error"):
        raise ConnectionError(error)
    if _state().get("dies"):
        os._exit(1)

def nodes():
    return [
        {{"Alive": alive, "NodeManagerAddress": address, "Resources": {{"GPU": gpus}}}}
        for address, gpus, alive in _state()["nodes"]
    ]

def available_resources():
    return {{"GPU": _state()["free"], "CPU": 4.0}}
"""


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that holds what the fake Ray says."""
    state = tmp_path / "state.json"
    (tmp_path / "ray.py").write_text(FAKE_RAY.format(state=str(state)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # put back at the end
    del sys.modules["ray"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return state


def gate(seconds: float = 30, *, fits: bool = False) -> RayCluster:
    return RayCluster(2, "GPU", seconds, fits_here=fits)


def test_a_cluster_that_is_whole(ray: Path) -> None:
    """Nobody waits; nodes that are dead do not count."""
    ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, True]], "free": 2.0}))
    with gate().wait_for_nodes():
        pass


def test_a_cluster_that_becomes_whole(ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate opens when the second node is there, and tells meanwhile what is missing."""
    ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, False]], "free": 1.0}))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "1 of 2" in line:
            ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, True]], "free": 2.0}))

    monkeypatch.setattr(cluster.logger, "info", say)
    monkeypatch.setattr(cluster, "_REPORT_SECONDS", 0.1)
    with RayCluster(2, "GPU", 60, fits_here=False).wait_for_nodes():
        pass
    expected = "the Ray cluster has 1 of 2 GPUs free, on 1 node (a with 1)"
    assert f"waiting for the Ray cluster: {expected}" in said


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"nodes": [["a", 8, True], ["b", 0, True]], "free": 1.0}, "1 of 2 GPUs free, on 2 nodes"),
        ({"error": "no cluster"}, "ConnectionError: no cluster, after 5 s"),
        ({"dies": True}, "the process that asks Ray has died"),
    ],
    ids=["busy", "no cluster", "died"],
)
def test_the_deadline_says_what_is_missing(ray: Path, state: dict[str, Any], expected: str) -> None:
    """One line, with the setting that would have waited longer."""
    ray.write_text(json.dumps(state))
    with pytest.raises(SettingsError) as raised, gate(5).wait_for_nodes():
        pytest.fail("the gate is open")
    assert expected in str(raised.value)
    assert "serving.cluster_join_timeout_seconds" in str(raised.value)


def test_without_a_cluster_vllm_starts_one(ray: Path) -> None:
    """Where this machine has all GPUs, and nobody has named a cluster."""
    ray.write_text(json.dumps({"error": "no cluster"}))
    with gate(fits=True).wait_for_nodes():
        pass


def test_an_unload_ends_the_waiting(ray: Path) -> None:
    """A model that is to go does not wait for machines."""
    ray.write_text(json.dumps({"nodes": [], "free": 0.0}))
    waiting = gate()
    waiting.close()
    with pytest.raises(SettingsError, match="being unloaded"), waiting.wait_for_nodes():
        pytest.fail("the gate is open")


WHOLE: dict[str, Any] = {"nodes": [["a", 1, True], ["b", 1, True]], "free": 2.0}
PENDING: dict[str, Any] = {"nodes": [["a", 1, True], ["b", 1, False]], "free": 1.0, "pending": True}


def wait_for_places() -> None:
    """What the engine core does, in a process of its own, to which the environment goes."""
    group = SimpleNamespace(bundle_specs=[{"GPU": 1}] * 2, ready=lambda: "reference")
    placement = Placement.of_environment()
    assert placement is not None
    placement.wait(group, "GPU")


def test_places_that_are_there(ray: Path) -> None:
    """The engine core goes on, and is offered nothing after the start."""
    ray.write_text(json.dumps(WHOLE))
    with gate().wait_for_nodes():
        wait_for_places()
    assert Placement.of_environment() is None
    assert ray_cluster.PLACEMENT not in os.environ


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (PENDING, "the Ray cluster has 1 of 2 GPUs free, on 1 node (a with 1)"),
        (WHOLE | {"pending": True}, "Ray has no place for 2 workers"),
    ],
    ids=["a node is gone", "unexplained"],
)
def test_places_that_do_not_come(
    ray: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], expected: str
) -> None:
    """The gate opened on what was so a moment ago: the start ends, and says what is missing."""
    monkeypatch.setattr(ray_cluster, "_LEAST_SECONDS", 0.5)
    ray.write_text(json.dumps(WHOLE))

    def start() -> None:
        with gate(1).wait_for_nodes():
            ray.write_text(json.dumps(state))
            try:
                wait_for_places()
            except TimeoutError as error:
                raise RuntimeError("Engine core initialization failed") from error

    with pytest.raises(SettingsError) as raised:
        start()
    assert f'{expected}, after 1 s ("serving.cluster_join_timeout_seconds")' == str(raised.value)


def test_an_unload_ends_the_wait_for_places(ray: Path) -> None:
    """A model that is to go does not wait for them either."""
    ray.write_text(json.dumps(WHOLE))
    waiting = gate(60)

    def start() -> None:
        with waiting.wait_for_nodes():
            ray.write_text(json.dumps(PENDING))
            threading.Timer(0.3, waiting.close).start()
            wait_for_places()

    with pytest.raises(SettingsError, match="being unloaded"):
        start()


def test_a_start_that_fails_by_itself(ray: Path) -> None:
    """Its own error is told."""
    ray.write_text(json.dumps(WHOLE))
    with pytest.raises(RuntimeError, match="no weights"), gate().wait_for_nodes():
        raise RuntimeError("no weights")

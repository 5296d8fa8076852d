"""The gate before an engine on several machines, and the watch over it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fakes import FakeLog
from triton_vllm import cluster, machines
from triton_vllm.cluster import RayCluster
from triton_vllm.errors import SettingsError
from triton_vllm.machines import Machines, Meeting, connections

# What is asked of Ray; its real counterpart is in tests/e2e/test_cluster.py.
FAKE_RAY = """
import json, os
from pathlib import Path

def _state():
    return json.loads(Path({state!r}).read_text())

def is_initialized():
    return False

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
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return state


def gate(seconds: float = 30, *, fits: bool = False) -> RayCluster:
    return RayCluster(2, "GPU", seconds, FakeLog(), fits_here=fits)


def test_a_cluster_that_is_whole(ray: Path) -> None:
    """Nobody waits; nodes that are dead do not count."""
    ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, True]], "free": 2.0}))
    with gate().gather():
        pass


def test_a_cluster_that_becomes_whole(ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate opens when the second node is there, and tells meanwhile what is missing."""
    ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, False]], "free": 1.0}))
    log = FakeLog()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "1 of 2" in line:
            ray.write_text(json.dumps({"nodes": [["a", 1, True], ["b", 1, True]], "free": 2.0}))

    monkeypatch.setattr(log, "log_info", say)
    monkeypatch.setattr(cluster, "_REPORT_SECONDS", 0.1)
    with RayCluster(2, "GPU", 60, log, fits_here=False).gather():
        pass
    expected = "the Ray cluster has 1 of 2 GPUs free, on 1 node (a with 1)"
    assert f"waiting for the Ray cluster: {expected}" in said


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"nodes": [["a", 8, True], ["b", 0, True]], "free": 1.0}, "1 of 2 GPUs free, on 2 nodes"),
        ({"error": "no cluster"}, "ConnectionError: no cluster, after 3 s"),
        ({"dies": True}, "the process that asks Ray has died"),
    ],
    ids=["busy", "no cluster", "died"],
)
def test_the_deadline_says_what_is_missing(ray: Path, state: dict[str, Any], expected: str) -> None:
    """One line, with the setting that would have waited longer."""
    ray.write_text(json.dumps(state))
    with pytest.raises(SettingsError) as raised, gate(3).gather():
        pytest.fail("the gate is open")
    assert expected in str(raised.value)
    assert "serving.cluster_timeout_seconds" in str(raised.value)


def test_without_a_cluster_vllm_starts_one(ray: Path) -> None:
    """Where this machine has all GPUs, and nobody has named a cluster."""
    ray.write_text(json.dumps({"error": "no cluster"}))
    with gate(fits=True).gather():
        pass


def test_an_unload_ends_the_waiting(ray: Path) -> None:
    """A model that is to go does not wait for machines."""
    ray.write_text(json.dumps({"nodes": [], "free": 0.0}))
    waiting = gate()
    waiting.close()
    with pytest.raises(SettingsError, match="being unloaded"), waiting.gather():
        pytest.fail("the gate is open")


def test_connections_are_counted() -> None:
    """Those that stand, at that port of ours; not those that have gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [] == connections(port)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        assert 2 == len(connections(port))
        assert 2 == Meeting("127.0.0.1", port, 2, "engines").arrived()
        assert 1 == Meeting("127.0.0.1", port, 2, "machines").arrived()
        for client in clients:
            client.close()


def test_machines_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline the engine here is ended, and what the start fails with is told."""
    context = multiprocessing.get_context("spawn")
    core = context.Process(target=time.sleep, args=(60,), name="EngineCore_DP0", daemon=True)
    other = context.Process(target=time.sleep, args=(60,), name="grammar-compiler", daemon=True)
    core.start()
    other.start()
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]

        def start() -> None:
            with Machines(Meeting("127.0.0.1", port, 2, "engines"), 1, FakeLog()).gather():
                core.join(50)
                raise RuntimeError("Engine core initialization failed")

        with (
            socket.create_connection(("127.0.0.1", port)),
            pytest.raises(SettingsError) as raised,
        ):
            start()
    assert f"1 of 2 engines have connected to 127.0.0.1:{port} within 1 s" in str(raised.value)
    assert "scripts/join_cluster.sh" in str(raised.value)
    assert other.is_alive()
    other.kill()
    other.join()


def test_a_start_that_fails_by_itself() -> None:
    """Its own error is told."""
    with (
        pytest.raises(RuntimeError, match="no weights"),
        Machines(Meeting("127.0.0.1", 1, 2, "engines"), 60, FakeLog()).gather(),
    ):
        raise RuntimeError("no weights")


def test_an_engine_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes here are ended, so that all learn of it."""
    ended = []
    monkeypatch.setattr(machines, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(machines, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(machines, "end_engine", lambda: ended.append(True))
    answers = [True, True]

    async def is_sleeping_async() -> bool:
        if not answers:
            await asyncio.sleep(60)
        return answers.pop()

    llm = SimpleNamespace(engine_core=SimpleNamespace(is_sleeping_async=is_sleeping_async))
    log = FakeLog()
    asyncio.run(Machines(None, 60, log).watch(llm))
    assert [True] == ended
    assert [] == answers
    assert "taken for lost" in log.lines[-1][1]

"""The gate before an engine on machines that vLLM itself joins, and the watch over it."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from types import SimpleNamespace

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.topology import nodes
from triton_vllm.topology.nodes import MultiNode, Rendezvous, connections


def test_connections_are_counted() -> None:
    """Those that stand, at that port of ours; not those that have gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [] == connections(port)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        assert 2 == len(connections(port))
        assert 2 == Rendezvous("127.0.0.1", port, 2, "engines").arrived()
        assert 1 == Rendezvous("127.0.0.1", port, 2, "nodes").arrived()
        for client in clients:
            client.close()


def test_machines_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the deadline the engine here is ended, and what the start fails with is told."""
    context = multiprocessing.get_context("spawn")
    core = context.Process(target=time.sleep, args=(60,), name="EngineCore_DP0", daemon=True)
    other = context.Process(target=time.sleep, args=(60,), name="sandbox", daemon=True)
    core.start()
    other.start()
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]

        def start() -> None:
            with MultiNode(Rendezvous("127.0.0.1", port, 2, "engines"), 1).wait_for_nodes():
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
        MultiNode(Rendezvous("127.0.0.1", 1, 2, "engines"), 60).wait_for_nodes(),
    ):
        raise RuntimeError("no weights")


def test_an_engine_that_does_not_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The processes here are ended, so that all learn of it."""
    ended = []
    monkeypatch.setattr(nodes, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(nodes, "end_engine", lambda: ended.append(True))
    answers = [True, True]

    async def is_sleeping_async() -> bool:
        if not answers:
            await asyncio.sleep(60)
        return answers.pop()

    llm = SimpleNamespace(engine_core=SimpleNamespace(is_sleeping_async=is_sleeping_async))
    asyncio.run(MultiNode(None, 60).watch(llm))
    assert [True] == ended
    assert [] == answers
    assert "considered lost" in caplog.messages[-1]

"""vLLM's client of data-parallel engine cores, choosing ranks together with other front ends."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import PoolingParams
from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient

from triton_vllm.topology.rank_loads import RankLoads
from triton_vllm.vllm_api.rank_balancing import balance_ranks, choose_ranks_together

ENGINES = [b"\x00\x00", b"\x01\x00"]


def client_of(index: int, count: int) -> Any:
    """Return vLLM's client as it is after its start, without the engine cores."""
    client = DPLBAsyncMPClient.__new__(DPLBAsyncMPClient)
    client.client_count, client.client_index = count, index
    client.core_engines = list(ENGINES)
    # Waiting, running and, in newer versions, the use of the KV cache.
    numbers = 3 if "kv_cache_usage" in inspect.getsource(DPLBAsyncMPClient) else 2
    client.lb_engines = [[0] * numbers for _ in ENGINES]
    client.eng_start_index = len(ENGINES) * index // count
    client.reqs_in_flight = {}
    client.streaming_reqs = set()
    if "engine_inflight" in inspect.getsource(DPLBAsyncMPClient):
        client.engine_inflight = Counter()
    return client


def request(name: str, rank: int | None = None, pooling: PoolingParams | None = None) -> Any:
    """Return a request, as far as the choice looks at it."""
    return SimpleNamespace(
        request_id=name, data_parallel_rank=rank, pooling_params=pooling, resumable=False
    )


def finish(client: Any, *requests: str) -> None:
    """Let vLLM hear that requests have ended."""
    outputs = SimpleNamespace(finished_requests=set(requests))
    asyncio.run(DPLBAsyncMPClient.process_engine_outputs(client, outputs))


@pytest.fixture
def loads(tmp_path: Path) -> Iterator[list[RankLoads]]:
    """What two front ends know of two ranks."""
    path, ranks = tmp_path / "ranks", len(ENGINES)
    others = lambda: [1], lambda: [0]
    tables = [RankLoads(path, 2, index, ranks, others[index]) for index in range(2)]
    yield tables
    for table in tables:
        table.close()


@pytest.fixture
def clients(loads: list[RankLoads]) -> list[Any]:
    """The clients of two front ends."""
    clients = [client_of(index, 2) for index in range(2)]
    for client, table in zip(clients, loads, strict=True):
        balance_ranks(client, table)
    return clients


def test_the_clients_choose_together(clients: list[Any], loads: list[RankLoads]) -> None:
    """Without a word from the coordinator."""
    one, other = clients
    for number in range(4):
        assert ENGINES[0] == one.get_core_engine_for_request(request(f"a{number}", rank=0))
    for number in range(4):
        assert ENGINES[1] == other.get_core_engine_for_request(request(f"b{number}"))
    assert [4, 4] == loads[0].requests()


def test_what_has_ended_no_longer_counts(clients: list[Any], loads: list[RankLoads]) -> None:
    """Also when vLLM tells it twice, or of a request that it does not know."""
    one, other = clients
    for number in range(3):
        one.get_core_engine_for_request(request(str(number), rank=1))
    finish(one, "0", "1")
    finish(one, "0", "stranger")
    assert [0, 1] == loads[1].requests()
    assert ENGINES[0] == other.get_core_engine_for_request(request("next"))


def test_an_abort_finds_its_rank(clients: list[Any]) -> None:
    """VLLM looks it up in the map that counts."""
    engine = clients[0].get_core_engine_for_request(request("a", rank=1))
    assert engine == clients[0].reqs_in_flight.get("a") == ENGINES[1]


def test_pooling_is_counted_and_chosen_by_vllm(clients: list[Any], loads: list[RankLoads]) -> None:
    """Late interaction has its own idea of a rank."""
    pooling = request("p", pooling=PoolingParams())
    clients[0].get_core_engine_for_request(pooling)
    assert pooling.data_parallel_rank is None
    assert 1 == sum(loads[1].requests())


def test_a_request_that_is_not_sent_no_longer_counts(
    clients: list[Any], loads: list[RankLoads]
) -> None:
    """VLLM chooses a rank before it encodes a request, and forgets neither if that fails."""

    def fail(*_: Any) -> None:
        raise OverflowError("integer value out of range")

    one = clients[0]
    one._ensure_stats_update_task = one._ensure_output_queue_task = lambda: None
    one.current_wave, one.engines_running, one._send_input = 0, True, fail
    with pytest.raises(OverflowError):
        asyncio.run(one.add_request_async(request("a", rank=1)))
    assert [0, 0] == loads[1].requests()
    assert "a" not in one.reqs_in_flight
    assert not any(getattr(one, "engine_inflight", Counter()).values())


def test_requests_that_wait_for_a_full_cache_count_as_in_vllm(clients: list[Any]) -> None:
    """Versions before 0.32 have no such rule."""
    one = clients[0]
    if len(one.lb_engines[0]) == 2:
        pytest.skip("this vLLM does not look at the KV cache")
    one.lb_engines[1][:] = [4, 8, 0.9]
    assert [ENGINES[0]] * 8 == [
        one.get_core_engine_for_request(request(str(number))) for number in range(8)
    ]
    one.lb_engines[1][:] = [4, 8, 0.4]
    assert ENGINES[1] == one.get_core_engine_for_request(request("last"))


def test_after_the_end_of_a_run_vllm_chooses(clients: list[Any], loads: list[RankLoads]) -> None:
    """A request may still be under way to the client."""
    loads[0].close()
    late = request("late")
    assert clients[0].get_core_engine_for_request(late) in ENGINES
    assert late.data_parallel_rank is None
    finish(clients[0], "late")


def test_a_client_without_a_choice(tmp_path: Path) -> None:
    """That of one engine core, or of one rank of many, balances nothing."""
    assert "reqs_in_flight" in inspect.getsource(DPLBAsyncMPClient.__init__)
    for kind in AsyncMPClient, DPAsyncMPClient:
        assert "reqs_in_flight" not in inspect.getsource(kind)
        llm = SimpleNamespace(engine_core=kind.__new__(kind))
        slot: Any = SimpleNamespace(cohort=tmp_path)
        with contextlib.ExitStack() as held:
            choose_ranks_together(llm, slot, held)
        assert not (tmp_path / "ranks").exists()


def test_without_the_table_vllm_chooses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk costs no load."""
    client = client_of(0, 2)
    slot: Any = SimpleNamespace(cohort=tmp_path / "gone", count=2, index=0, others=list)
    with contextlib.ExitStack() as held:
        choose_ranks_together(SimpleNamespace(engine_core=client), slot, held)
    assert "chooses data-parallel ranks by itself" in caplog.text
    assert isinstance(client.get_core_engine_for_request(request("a")), bytes)

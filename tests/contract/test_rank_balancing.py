"""vLLM's client of data-parallel engine cores, choosing ranks together with other front ends."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import PoolingParams
from vllm.v1.engine.core_client import DPLBAsyncMPClient

from triton_vllm.topology.rank_loads import RankLoads
from triton_vllm.vllm_api.rank_balancing import balance_ranks, rank_count

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
    client.reqs_in_flight, client.engine_inflight = {}, Counter()
    client.streaming_reqs = set()
    # The destructor's.
    client.resources = SimpleNamespace(engine_dead=True)
    client._finalizer = lambda: None
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
    tables = [RankLoads(tmp_path / "ranks", 2, index, len(ENGINES)) for index in range(2)]
    yield tables
    for table in tables:
        table.close()


@pytest.fixture
def clients(loads: list[RankLoads]) -> list[Any]:
    """The clients of two front ends."""
    clients = [client_of(index, 2) for index in range(2)]
    for client, table in zip(clients, loads, strict=True):
        balance_ranks(SimpleNamespace(engine_core=client), table)
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


def test_a_client_without_a_choice() -> None:
    """That of one engine core, or of one rank of many, balances nothing."""
    alone = SimpleNamespace(engine_core=SimpleNamespace(core_engines=[ENGINES[0]]))
    assert 1 == rank_count(alone)
    assert 2 == rank_count(SimpleNamespace(engine_core=client_of(0, 2)))
    assert "reqs_in_flight" in inspect.getsource(DPLBAsyncMPClient.__init__)

"""Lets the front ends of data-parallel engine cores choose the rank of a request together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_vllm.topology.rank_loads import RankLoads


class _InFlight(dict[str, bytes]):
    """vLLM's map from a request to its engine core, which counts the requests of each rank."""

    def __init__(self, loads: RankLoads, ranks: Mapping[bytes, int]) -> None:
        super().__init__()
        self._loads = loads
        self._ranks = ranks

    def __setitem__(self, request: str, engine: bytes) -> None:
        self._count(self.get(request), -1)
        super().__setitem__(request, engine)
        self._count(engine, 1)

    def pop(self, request: str, *default: Any) -> Any:
        self._count(self.get(request), -1)
        return super().pop(request, *default)

    def _count(self, engine: bytes | None, by: int) -> None:
        if engine is not None and engine in self._ranks:
            self._loads.change(self._ranks[engine], by)


def rank_count(llm: Any) -> int:
    """Return among how many ranks vLLM's client chooses, 1 if there is no choice."""
    client = llm.engine_core
    return len(client.core_engines) if hasattr(client, "reqs_in_flight") else 1


def balance_ranks(llm: Any, loads: RankLoads) -> None:
    """Send each request to the rank that has the fewest of all front ends.

    Not one that names its rank. Pooling stays with vLLM, which keeps what belongs together on one
    rank. Event loop only.
    """
    client = llm.engine_core
    ranks = {engine: rank for rank, engine in enumerate(client.core_engines)}
    client.reqs_in_flight = _InFlight(loads, ranks)
    choose = client.get_core_engine_for_request

    def choose_together(request: Any) -> Any:
        if request.data_parallel_rank is None and request.pooling_params is None:
            request.data_parallel_rank = loads.least()
        return choose(request)

    client.get_core_engine_for_request = choose_together

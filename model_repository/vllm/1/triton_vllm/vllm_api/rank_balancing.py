"""Lets the front ends of data-parallel engine cores choose the rank of a request together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from triton_vllm.topology.front_ends import FrontEndSlot
from triton_vllm.topology.rank_loads import RankLoads

logger = logging.getLogger(__name__)


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


def choose_ranks_together(llm: Any, slot: FrontEndSlot, held: contextlib.ExitStack) -> None:
    """Let the front ends of data-parallel engine cores choose ranks together, until ``held`` ends.

    For a front end whose vLLM chooses among ranks; for others it does nothing. They do not know the
    requests of vLLM's Rust front end, so do not call it with that one.
    """
    client = llm.engine_core
    if not hasattr(client, "reqs_in_flight"):
        return
    path, ranks = slot.cohort / "ranks", len(client.core_engines)
    try:
        loads = RankLoads(path, slot.count, slot.index, ranks, slot.others)
    except OSError as error:
        logger.warning(f"each front end chooses data-parallel ranks by itself: {path}: {error}")
        return
    held.callback(loads.close)
    balance_ranks(client, loads)


def balance_ranks(client: Any, loads: RankLoads) -> None:
    """Send each request of vLLM's client to the rank that has the fewest of all front ends.

    Not one that names its rank. Pooling stays with vLLM, which keeps what belongs together on one
    rank. Event loop only.
    """
    ranks = {engine: rank for rank, engine in enumerate(client.core_engines)}
    client.reqs_in_flight = _InFlight(loads, ranks)
    choose, add = client.get_core_engine_for_request, client.add_request_async

    def choose_together(request: Any) -> Any:
        free = request.data_parallel_rank is None and request.pooling_params is None
        if free and loads.is_open:
            pressure = [_pressure(counts) for counts in client.lb_engines]
            request.data_parallel_rank = loads.least(pressure)
        return choose(request)

    async def add_or_forget(request: Any) -> None:
        try:
            await add(request)
        except Exception:  # the engine has not got it, so it will never tell its end
            engine = client.reqs_in_flight.pop(request.request_id, None)
            if engine is not None and hasattr(client, "engine_inflight"):
                client.engine_inflight[engine] -= 1
            raise

    client.get_core_engine_for_request = choose_together
    client.add_request_async = add_or_forget


def _pressure(counts: Sequence[float]) -> float:
    """Return what vLLM adds for requests that wait while the KV cache is more than half full.

    Versions that have no such rule have two numbers of a rank: those that wait, and those that run.
    """
    if len(counts) < 3:
        return 0.0
    waiting, _, used = counts
    return waiting * 6.0 * max(0.0, used - 0.5)

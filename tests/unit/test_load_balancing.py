"""Which engine delays its next request, for how long, and which engines do not count."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import triton_vllm
from triton_vllm.topology import load_balancing
from triton_vllm.topology.load_balancing import (
    DOWN_SECONDS,
    HOLD_SECONDS,
    STALE_SECONDS,
    LoadBalancer,
    NoLoadBalancer,
    is_level,
)

PACKAGE = str(Path(triton_vllm.__file__).parents[1])

# A front end that shows ten requests and its life, and dies without a word.
FRONT_END = """
import os, sys
from pathlib import Path
from triton_vllm.topology.load_balancing import LoadBalancer
table = LoadBalancer(Path(sys.argv[1]), 2, 1, 1)
table.beat(serves=True)
for _ in range(10):
    table.accepted_http()
os._exit(1)
"""


class Clock:
    """``time``, in which sleep takes no time, and in which something may happen at a time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept = 0.0
        self.events: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        self.events.append((self.now + seconds, event))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time as ``load_balancing`` sees it."""
    clock = Clock()
    monkeypatch.setattr(load_balancing, "time", clock)
    return clock


@pytest.fixture
def tables(tmp_path: Path, clock: Clock) -> Iterator[list[LoadBalancer]]:
    """Two engines with two front ends each, all of which serve: 0 and 2, 1 and 3."""
    with contextlib.ExitStack() as stack:
        made = [LoadBalancer(tmp_path / "loads", 4, slot, slot % 2) for slot in range(4)]
        for table in made:
            stack.callback(table.close)
            table.beat(serves=True)
        yield made


def take(table: LoadBalancer, count: int) -> None:
    for _ in range(count):
        table.accepted()


def held(table: LoadBalancer, clock: Clock) -> float:
    """Return for how many seconds ``execute`` of this front end waits."""
    before = clock.slept
    table.backpressure()
    return clock.slept - before


def requests(table: LoadBalancer) -> tuple[int | None, int | None]:
    """Return the requests of this front end's engine and of the other one, None where down."""
    own, others = table.requests()
    return own, (others[0] if others else None)


@pytest.mark.parametrize(
    ("own", "least", "level"),
    [(0, 0, True), (0, 5, True), (1, 0, True), (2, 0, False), (8, 7, True), (9, 8, False)],
)
def test_a_lead_of_one_is_none_among_few(own: int, least: int, *, level: bool) -> None:
    """Above that, and among many, the next request belongs elsewhere."""
    assert level == is_level(own, least)


def test_all_see_all_requests(tables: list[LoadBalancer]) -> None:
    """Those that execute took and those that came in the loop, of all front ends of an engine."""
    take(tables[0], 3)
    take(tables[2], 2)
    tables[2].accepted_http()
    take(tables[3], 1)
    assert [(6, 1), (1, 6)] * 2 == [requests(table) for table in tables]
    for _ in range(2):
        tables[0].finished()
    assert (1, 4) == requests(tables[1])


def test_the_least_loaded_never_waits(tables: list[LoadBalancer], clock: Clock) -> None:
    """Nor does anybody while both have the same."""
    take(tables[0], 50)
    take(tables[1], 50)
    assert [0, 0, 0, 0] == [held(table, clock) for table in tables]
    take(tables[2], 50)
    assert [0, 0] == [held(tables[1], clock), held(tables[3], clock)]


def test_who_is_ahead_waits_for_a_moment_only(tables: list[LoadBalancer], clock: Clock) -> None:
    """Though nothing changes; the one that took nothing belongs to the same engine."""
    take(tables[0], 50)
    for table in tables[0], tables[2]:
        assert pytest.approx(HOLD_SECONDS, abs=0.003) == held(table, clock)


def test_who_is_ahead_waits_no_longer_than_it_is(tables: list[LoadBalancer], clock: Clock) -> None:
    """When the other has caught up, the next request may come."""
    take(tables[0], 3)
    clock.at(0.005, tables[1].accepted)
    clock.at(0.010, tables[3].accepted)
    assert pytest.approx(0.010, abs=0.003) == held(tables[0], clock)


def test_an_engine_that_is_down_holds_nobody_back(tables: list[LoadBalancer], clock: Clock) -> None:
    """It has nothing to do, and is not the least loaded one; it leaves requests to the others."""
    take(tables[0], 50)
    for table in tables[1], tables[3]:
        table.beat(serves=False)
    assert [(50, None), (None, 50)] == [requests(table) for table in tables[:2]]
    assert 0 == held(tables[0], clock)
    for number in range(1, 5):
        clock.at(number / 2, lambda: tables[0].beat(serves=True))
    assert pytest.approx(DOWN_SECONDS, abs=0.003) == held(tables[1], clock)


def test_an_engine_that_is_back_waits_no_longer(tables: list[LoadBalancer], clock: Clock) -> None:
    """The first heartbeat after a restart ends the wait."""
    for table in tables[1], tables[3]:
        table.beat(serves=False)
    clock.at(0.1, lambda: tables[3].beat(serves=True))
    assert pytest.approx(0.1, abs=0.003) == held(tables[1], clock)


def test_when_all_are_down_nobody_waits(tables: list[LoadBalancer], clock: Clock) -> None:
    """A refusal comes at once."""
    for table in tables:
        table.beat(serves=False)
    assert [0, 0, 0, 0] == [held(table, clock) for table in tables]


def test_a_process_that_died_counts_no_more(tmp_path: Path, clock: Clock) -> None:
    """Its requests and its life stay in the file, and grow old."""
    path = tmp_path / "loads"
    with contextlib.closing(LoadBalancer(path, 2, 0, 0)) as table:
        clock.now = time.monotonic()
        command = [sys.executable, "-c", FRONT_END, str(path)]
        died = subprocess.run(command, env={"PYTHONPATH": PACKAGE}, check=False, timeout=60)
        assert 1 == died.returncode
        assert (None, 10) == requests(table)
        clock.now = time.monotonic() + STALE_SECONDS
        assert (None, None) == requests(table)


def test_who_leaves_counts_no_more(tmp_path: Path) -> None:
    """As when the model is unloaded, one front end after the other."""
    first, second = (LoadBalancer(tmp_path / "loads", 2, slot, slot) for slot in range(2))
    second.beat(serves=True)
    take(second, 5)
    second.close()
    assert (None, None) == requests(first)
    first.close()


def test_heartbeats_follow_the_engine(
    tables: list[LoadBalancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop shows that the engine serves, and that it does not."""
    monkeypatch.setattr(load_balancing, "HEARTBEAT_SECONDS", 0)
    seen: list[int | None] = []

    def serves() -> bool:
        seen.append(requests(tables[1])[1])
        if len(seen) == 4:
            raise KeyError
        return len(seen) == 2

    tables[2].beat(serves=False)
    with pytest.raises(KeyError):
        asyncio.run(tables[0].heartbeat(serves))
    assert [0, None, 0, None] == seen


def test_one_engine_shares_nothing() -> None:
    """Every step is there, and none does anything."""
    balancer = NoLoadBalancer()
    balancer.accepted()
    balancer.accepted_http()
    balancer.finished()
    balancer.backpressure()
    asyncio.run(balancer.heartbeat(lambda: True))

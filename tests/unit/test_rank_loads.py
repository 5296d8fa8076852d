"""The requests of data-parallel ranks, counted by all front ends of an engine together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from triton_vllm.topology import rank_loads
from triton_vllm.topology.rank_loads import RankLoads

FRONT_ENDS = 3
RANKS = 2
NOTHING = [0] * RANKS


def table(path: Path, front_end: int, living: set[int] | None = None) -> RankLoads:
    """Return front end ``front_end``'s view of the table; all are alive unless ``living`` says."""
    living = set(range(FRONT_ENDS)) if living is None else living
    return RankLoads(
        path / "ranks", FRONT_ENDS, front_end, RANKS, lambda: sorted(living - {front_end})
    )


@pytest.fixture
def front_ends(tmp_path: Path) -> Iterator[list[RankLoads]]:
    """The front ends of an engine with two ranks."""
    tables = [table(tmp_path, number) for number in range(FRONT_ENDS)]
    yield tables
    for loads in tables:
        loads.close()


def test_all_see_the_requests_of_all(front_ends: list[RankLoads]) -> None:
    """Those that have ended no longer count."""
    front_ends[0].change(0, 1)
    front_ends[1].change(1, 1)
    front_ends[2].change(1, 1)
    assert [[1, 2]] * FRONT_ENDS == [loads.requests() for loads in front_ends]
    front_ends[2].change(1, -1)
    assert [[1, 1]] * FRONT_ENDS == [loads.requests() for loads in front_ends]


def test_requests_go_where_there_are_the_fewest(front_ends: list[RankLoads]) -> None:
    """Whoever has the others."""
    for _ in range(5):
        front_ends[0].change(1, 1)
    for number in range(5):
        loads = front_ends[number % FRONT_ENDS]
        assert 0 == loads.least(NOTHING)
        loads.change(0, 1)
    assert [5, 5] == front_ends[0].requests()


def test_equal_ranks_take_turns(front_ends: list[RankLoads]) -> None:
    """Also those of front ends that ask at the same time."""
    assert 2 == len({front_ends[0].least(NOTHING) for _ in range(2)})
    assert 2 == len({loads.least(NOTHING) for loads in front_ends[1:]})


def test_what_else_burdens_a_rank_is_added(front_ends: list[RankLoads]) -> None:
    """Such as a full KV cache."""
    front_ends[0].change(0, 1)
    assert [1, 1] == [front_ends[1].least([0.9, 0.0]), front_ends[1].least([0.0, 0.9])]
    assert 0 == front_ends[1].least([0.0, 1.1])


def test_many_ranks(tmp_path: Path) -> None:
    """More than the numbers of one cache line."""
    one, other = (
        RankLoads(tmp_path / "ranks", 2, number, 20, partial(list, [1 - number]))
        for number in range(2)
    )
    for rank in range(20):
        (one if rank % 2 else other).change(rank, rank != 17)
    assert 17 == one.least([0] * 20) == other.least([0] * 20)
    one.close()
    other.close()


def test_a_front_end_that_has_died_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed within a second; its requests end in the engine, and nobody says so."""
    living = {0, 1}
    one, other = table(tmp_path, 0, living), table(tmp_path, 1, living)
    other.change(1, 1)
    assert [0, 1] == one.requests()
    living.discard(1)
    assert [0, 1] == one.requests()
    monkeypatch.setattr(rank_loads, "_LOOK_SECONDS", 0.0)
    assert [0, 0] == one.requests()
    one.close()
    other.close()


def test_a_new_run_of_the_engine_begins_with_none(
    front_ends: list[RankLoads], tmp_path: Path
) -> None:
    """What the run before has left in the row of this front end is gone; others keep theirs."""
    front_ends[0].change(0, 1)
    front_ends[1].change(1, 1)
    again = table(tmp_path, 0)
    assert [0, 1] == again.requests() == front_ends[1].requests()
    again.close()


def test_who_leaves_takes_the_requests_along(tmp_path: Path) -> None:
    """They end with the engine, and what is heard of them later is ignored."""
    one, other = table(tmp_path, 0), table(tmp_path, 1)
    one.change(0, 1)
    one.close()
    one.change(0, -1)
    assert [0, 0] == other.requests()
    assert not one.is_open
    other.close()

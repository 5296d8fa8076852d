"""The bench's CPUs: lists as Linux writes them, physical cores kept whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peers import cpus


@pytest.mark.parametrize(
    ("text", "expected"), [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0,8,10-11\n", {0, 8, 10, 11})]
)
def test_a_list_is_read(text: str, expected: set[int]) -> None:
    """Ranges and commas."""
    assert expected == cpus.parse(text)


@pytest.mark.parametrize("text", ["", "a", "1-", "-"])
def test_what_is_no_list_is_refused(text: str) -> None:
    """As argparse wants it."""
    with pytest.raises(ValueError, match="invalid literal"):
        cpus.parse(text)


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        pytest.param("{0},{1}", {0, 4}, id="siblings four apart"),
        pytest.param("", {0, 1}, id="a machine that does not tell"),
    ],
)
def test_a_physical_core_is_kept_whole(
    siblings: str, expected: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two CPUs for the engine are the two of one core, so no other process shares the core."""
    monkeypatch.setattr(cpus, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        core = cpu % 4
        (topology / "thread_siblings_list").write_text(siblings.format(core, core + 4))
    assert (expected, set(range(8)) - expected) == cpus.split(2)


def test_others_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants all CPUs gets an error with their number."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with pytest.raises(ValueError, match="2 CPUs are wanted, and others: there are 2"):
        cpus.split(2)

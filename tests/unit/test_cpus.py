"""The engine's CPUs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_vllm.errors import SettingsError
from triton_vllm.topology.cpus import as_list, parse_cpus, pin_engine

WHERE = "args.json: serving.engine_cpu_affinity"


@pytest.fixture
def sixteen_cpus(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """A machine with 16 CPUs. Returns those of this process, to be changed."""
    here = set(range(16))

    def set_here(pid: int, cpus: Iterable[int]) -> None:
        wanted = set(cpus) & set(range(16))
        here.clear()
        here.update(wanted)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(here))
    monkeypatch.setattr(os, "sched_setaffinity", set_here)
    return here


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize(
    ("text", "expected"),
    [("", set()), ("3", {3}), ("0-1", {0, 1}), ("0-1, 8 ,10-12", {0, 1, 8, 10, 11, 12})],
)
def test_a_cpu_list_is_read_as_linux_writes_it(text: str, expected: set[int]) -> None:
    """Ranges, commas and spaces; nothing means no choice."""
    assert expected == parse_cpus(text, WHERE)


@pytest.mark.usefixtures("sixteen_cpus")
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a", "must be a list of CPUs"),
        ("1-", "must be a list of CPUs"),
        ("3-1", "must be a list of CPUs"),
        ("-1", "must be a list of CPUs"),
        ("16", r"that this process may have \(0-15\)"),
        ("0-99999999999", "among the CPUs"),
        ("0-15", r"leave some of its own \(0-15\) to the front ends"),
    ],
)
def test_a_wrong_cpu_list_is_refused(text: str, complaint: str) -> None:
    """The error has the place, the value and what is allowed."""
    with pytest.raises(SettingsError, match=f"^{WHERE}.*{complaint}"):
        parse_cpus(text, WHERE)


def test_only_a_choice_of_cpus_needs_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may forbid even the question; who has not chosen does not notice."""

    def forbidden(pid: int, cpus: Iterable[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert frozenset() == parse_cpus("", WHERE)
    with pytest.raises(SettingsError, match=f"^{WHERE}: this process may not choose.*permitted"):
        parse_cpus("0", WHERE)


def test_the_engines_cpus_may_be_others_than_the_servers(sixteen_cpus: set[int]) -> None:
    """With tritonserver on CPUs 2 to 15 (taskset), 0 and 1 are the engine's; nothing has moved."""
    sixteen_cpus -= {0, 1}
    assert {0, 1} == parse_cpus("0-1", WHERE)
    assert set(range(2, 16)) == sixteen_cpus
    with pytest.raises(SettingsError, match=r"leave some of its own \(2-15\)"):
        parse_cpus("2-15", WHERE)


@given(st.sets(st.integers(0, 300)))
def test_a_written_list_reads_back(chosen: set[int]) -> None:
    """``as_list`` writes what Linux would: every CPU once, runs as ranges."""
    read: set[int] = set()
    for part in filter(None, as_list(chosen).split(",")):
        first, _, last = part.partition("-")
        read.update(range(int(first), int(last or first) + 1))
    assert chosen == read


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_children_get_the_cpus_and_this_process_the_others() -> None:
    """A process started inside runs on the engine's CPUs; all threads here leave them."""
    before = os.sched_getaffinity(0)
    chosen = frozenset({min(before)})
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        with pin_engine(chosen):
            code = "import os; print(sorted(os.sched_getaffinity(0)))"
            child = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
        assert str(sorted(chosen)) == child.stdout.strip()
        for tid in (threading.get_native_id(), thread.native_id):
            assert before - chosen == os.sched_getaffinity(tid or 0)
    finally:
        ended.set()
        thread.join()
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), before)


def test_no_cpus_change_nothing() -> None:
    """An empty set leaves every thread where it may run now."""
    before = os.sched_getaffinity(0)
    with pin_engine(frozenset()):
        assert before == os.sched_getaffinity(0)
    assert before == os.sched_getaffinity(0)

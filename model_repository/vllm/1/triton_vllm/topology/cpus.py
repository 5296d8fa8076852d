"""Reserves CPUs for the engine core.

With a small model the engine core's one thread is the bottleneck. On CPUs that the front ends do
not use it does more steps a second (docs/benchmarks.md). A process inherits the CPUs of the thread
that starts it, so only this process is changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from triton_vllm.errors import SettingsError

_MOST_CPUS = 8192  # of Linux on x86


def parse_cpus(text: str, where: str) -> frozenset[int]:
    """Return the CPUs of a Linux CPU list such as ``"0-1,16"``; none for an empty one.

    They may lie outside the CPUs that this process was started on (``taskset``), so that nothing
    else of the server runs there. Raises SettingsError unless the host, or the container, allows
    all of them and another CPU is left.
    """
    cpus: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise SettingsError(f'{where}: must be a list of CPUs such as "0-1,16", got "{text}"')
        cpus.update(range(int(first), min(int(last), 1 << 16) + 1))
    if not cpus:
        return frozenset()
    here = os.sched_getaffinity(0)
    try:
        allowed = _all_allowed(here)
    except OSError as error:  # a container may forbid it
        raise SettingsError(f"{where}: this process may not choose its CPUs: {error}") from None
    if cpus - allowed or not here - cpus:
        raise SettingsError(
            f"{where}: must be among the CPUs that this process may have ({as_list(allowed)}), and "
            f'leave some of its own ({as_list(here)}) to the front ends, got "{text}"'
        )
    return frozenset(cpus)


def _all_allowed(here: set[int]) -> set[int]:
    """Return all CPUs that this thread may use: the kernel grants those when asked for all."""
    os.sched_setaffinity(0, range(_MOST_CPUS))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, here)
    return allowed


def as_list(cpus: set[int] | frozenset[int]) -> str:
    """Return CPUs as a Linux CPU list: the inverse of ``parse_cpus``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1][1:] = [cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)


@contextlib.contextmanager
def pin_engine(cpus: frozenset[int]) -> Iterator[None]:
    """Run what this thread starts meanwhile on ``cpus``, if any, and this process on the others."""
    if not cpus:
        yield
        return
    others = os.sched_getaffinity(0) - cpus
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.sched_setaffinity(int(thread.name), others)

"""Divides CPUs between client and servers; those of a physical core stay together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def parse(text: str) -> set[int]:
    """Return the CPUs of a Linux CPU list such as ``0-3,8``. Raises ValueError."""
    ends = [part.split("-", 1) for part in text.split(",")]
    return {cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)}


def as_list(cpus: Iterable[int]) -> str:
    """Return CPUs as a Linux CPU list, one by one."""
    return ",".join(map(str, sorted(cpus)))


def split(number: int) -> tuple[set[int], set[int]]:
    """Return ``number`` of this process's CPUs, and the others.

    Raises ValueError where that leaves no others.
    """
    cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_first_sibling(cpu), cpu))
    if number >= len(cpus):
        raise ValueError(f"{number} CPUs are wanted, and others: there are {len(cpus)}")
    return set(cpus[:number]), set(cpus[number:])


def _first_sibling(cpu: int) -> int:
    """Return the first CPU of the same physical core; of a machine that does not tell, itself."""
    try:
        siblings = parse((_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text())
    except (OSError, ValueError):
        return cpu
    return min(siblings)

"""The processes of a server: their CPU time, and their end. Reads /proc of Linux."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Tree:
    """All processes of the process group of ``leader``, and what descends from them.

    Descendants are remembered, as one that has a group of its own is an orphan once its parent
    has died.
    """

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._known: set[tuple[int, int]] = set()  # a process and when it began: ids are reused

    def processes(self) -> list[int]:
        """Return the ids of those that live."""
        living = {(pid, began): (parent, group) for pid, parent, group, began in _processes()}
        members = {
            key for key, (_, group) in living.items() if group == self._leader or key in self._known
        }
        while True:
            parents = {pid for pid, _ in members}
            more = {key for key, (parent, _) in living.items() if parent in parents} - members
            if not more:
                break
            members |= more
        self._known |= members
        return [pid for pid, _ in members]

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each thread, under "process/thread (thread id)"."""
        used: dict[str, float] = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                process = Path(f"/proc/{pid}/comm").read_text().strip()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    name, fields = _stat(task / "stat")
                    ticks = int(fields[11]) + int(fields[12])
                    used[f"{process}/{name} ({task.name})"] = ticks / _TICKS
        return used

    def kill(self) -> None:
        """End those that are left, by force."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> Iterator[tuple[int, int, int, int]]:
    """Yield id, parent, process group and start time of every live process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                _, fields = _stat(entry / "stat")
                if fields[0] != "Z":
                    yield int(entry.name), int(fields[1]), int(fields[2]), int(fields[19])


def _stat(path: Path) -> tuple[str, list[str]]:
    """Return the name and the fields after it, of which the first is the state."""
    text = path.read_text(errors="replace")
    begin, end = text.index("("), text.rindex(")")
    return text[begin + 1 : end], text[end + 2 :].split()

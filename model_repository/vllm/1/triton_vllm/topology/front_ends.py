"""How several front-end processes find the one engine that they share.

``instance_group [{ count: N }]`` makes Triton start N stub processes in any order, with no word
between them. Each takes a slot in a folder; the first one is the leader, which launches the engine
core and publishes its addresses there; the others wait for them and join.

    <tmp>/triton_vllm-<uid>/<server pid>-<its start time>/<model>/<version>[.<engine>]/
    ├── lock             held while a slot is taken or left
    └── 0-of-4/          one cohort: the N front ends of one load of the model
        ├── slot-0       locked by the leader as long as it lives
        ├── slot-1 …     locked by the others
        ├── engine.json  the addresses and process ids, published by the leader
        ├── metrics/     what each front end counts, in prometheus_client's files
        ├── drained/     who has answered all HTTP requests, at the end (draining.py)
        ├── loads        of several engines, where all their front ends meet (load_balancing.py)
        ├── errors.jsonl what the engine's processes log as errors (stub_process.py)
        ├── restarts-exhausted  the leader restarts the engine no more
        └── closing      the leader is ending the engine on purpose

What keeps cohorts apart: a slot is never taken twice, and a cohort that anybody has left,
by leaving or by dying, admits nobody any more. Locks are POSIX record locks, which the kernel drops
with the process, so a crash leaves nothing behind that could be mistaken for life.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from triton_vllm.errors import SettingsError

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineAddresses:
    """Where the engine core talks to each front end, and the processes it consists of.

    ``inputs[i]`` and ``outputs[i]`` are front end i's ZeroMQ addresses; ``stats_update`` is the
    data-parallel coordinator's, where there is one.
    """

    inputs: list[str]
    outputs: list[str]
    stats_update: str | None
    processes: list[int]


class SingleFrontEnd:
    """The place of a front end that has an engine of its own."""

    index = 0
    count = 1
    is_leader = True
    is_closing = False
    restarts_exhausted = False

    def leader_lives(self) -> bool:
        """Return whether the front end that launches the engine lives: this one."""
        return True

    def announce_closing(self) -> None:
        """Tell nobody."""

    def announce_restarts_exhausted(self) -> None:
        """Tell nobody."""

    def stop_waiting(self) -> None:
        """Wait for nobody anyway."""

    def occupied(self) -> int:
        """Return how many front ends live."""
        return 1


class FrontEndSlot:
    """One front end's place among those that share an engine."""

    def __init__(self, cohort: Path, index: int, count: int, held: IO[str]) -> None:
        """Use ``FrontEndSlot.claim``."""
        self.index = index
        self.count = count
        self._cohort = cohort
        self._held = held
        self._waits = True

    @classmethod
    def claim(cls, directory: Path, count: int) -> FrontEndSlot:
        """Claim the next free slot of ``count`` under ``directory``."""
        with _locked(directory):
            numbers = [0]
            for path in sorted(directory.glob("*-of-*"), key=_number):
                numbers.append(_number(path) + 1)
                slots = list(path.glob("slot-*"))
                if not any(_is_held(s) for s in slots):
                    shutil.rmtree(path, ignore_errors=True)
                elif (
                    len(slots) < count
                    and path.name.endswith(f"-of-{count}")
                    and all(_is_held(s) for s in slots)
                ):
                    return cls._lock(path, len(slots), count)
            path = directory / f"{max(numbers)}-of-{count}"
            (path / "metrics").mkdir(parents=True)
            return cls._lock(path, 0, count)

    @classmethod
    def _lock(cls, cohort: Path, index: int, count: int) -> FrontEndSlot:
        held = (cohort / f"slot-{index}").open("w", encoding="utf-8")
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.write(str(os.getpid()))
        held.flush()
        return cls(cohort, index, count, held)

    @property
    def is_leader(self) -> bool:
        """Whether this front end launches the engine core."""
        return self.index == 0

    @property
    def is_closing(self) -> bool:
        """Whether the leader is ending the engine on purpose."""
        return (self._cohort / "closing").exists()

    @property
    def restarts_exhausted(self) -> bool:
        """Whether the leader starts the engine no more."""
        return (self._cohort / "restarts-exhausted").exists()

    @property
    def metrics_directory(self) -> Path:
        """Where all front ends of this engine count."""
        return self._cohort / "metrics"

    @property
    def cohort(self) -> Path:
        """The folder of the front ends of this load of the model."""
        return self._cohort

    def others(self) -> list[int]:
        """Return the front ends that live, without this one."""
        own = Path(self._held.name)
        slots = [slot for slot in self._cohort.glob("slot-*") if slot != own]
        return [int(slot.name.removeprefix("slot-")) for slot in slots if _is_held(slot)]

    def occupied(self) -> int:
        """Return how many front ends live."""
        return 1 + len(self.others())

    def leader_lives(self) -> bool:
        """Return whether the front end that launches the engine lives."""
        return self.is_leader or _is_held(self._cohort / "slot-0")

    def leader_pid(self) -> int:
        """Return the process id of the leader."""
        return int((self._cohort / "slot-0").read_text(encoding="utf-8"))

    def publish(self, addresses: EngineAddresses) -> None:
        """Tell the others where the engine is. Leader only."""
        new = self._cohort / "engine.json.new"
        new.write_text(json.dumps(asdict(addresses)), encoding="utf-8")
        new.rename(self._cohort / "engine.json")

    def withdraw(self) -> None:
        """Take back what was published: that engine is no more. Leader only."""
        (self._cohort / "engine.json").unlink(missing_ok=True)

    async def wait_for_engine(self, died: EngineAddresses | None = None) -> EngineAddresses:
        """Wait until the leader has published an engine other than the one that ``died``.

        Raises SettingsError when the leader left or gave up, whose own line says why, and after
        ``stop_waiting``.
        """
        while (published := self._published()) is None or published == died:
            if not self._waits:
                raise SettingsError("the model is being unloaded")
            if self.is_closing or self.restarts_exhausted or not self.leader_lives():
                raise SettingsError(
                    "the front end that starts the shared engine has given up; "
                    "see the error of the other instance of this model"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return published

    def _published(self) -> EngineAddresses | None:
        try:
            text = (self._cohort / "engine.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return EngineAddresses(**json.loads(text))

    def release(self) -> None:
        """Give the slot back for ever; the last one to leave removes the folder."""
        with _locked(self._cohort.parent):
            if self.is_leader:
                self.announce_closing()
            self._held.close()  # which drops the lock
            others = set(self._cohort.glob("slot-*")) - {Path(self._held.name)}
            if not any(_is_held(slot) for slot in others):
                shutil.rmtree(self._cohort, ignore_errors=True)

    def stop_waiting(self) -> None:
        """Let ``wait_for_engine`` fail. Any thread."""
        self._waits = False

    def announce_closing(self) -> None:
        """Tell the others that the engine is about to end on purpose. Leader only."""
        (self._cohort / "closing").touch()

    def announce_restarts_exhausted(self) -> None:
        """Tell the others that there will be no other engine, if this is the leader."""
        if self.is_leader:
            (self._cohort / "restarts-exhausted").touch()


def rendezvous_dir(model: str, version: str, engine: str = "") -> Path:
    """Return the folder where the front ends of this model of this server meet; create it.

    Those of each ``engine`` meet in a folder of their own, where the model has several.

    The server is the parent process, told apart by its start time from one that had its id before.
    Folders of servers that are gone are removed; a server of another container, whose process
    cannot be seen from here, shows by its locks that it lives.
    """
    root = Path(tempfile.gettempdir()) / f"triton_vllm-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise SettingsError(f"{root}: belongs to somebody else; remove it or set TMPDIR")
    for server in root.iterdir():
        pid, _, started = server.name.partition("-")
        if pid.isdigit() and _start_time(int(pid)) != started and not _is_inhabited(server):
            shutil.rmtree(server, ignore_errors=True)
    server = root / f"{os.getppid()}-{_start_time(os.getppid())}"
    place = server / model / (f"{version}.{engine}" if engine else version)
    place.mkdir(parents=True, exist_ok=True)
    return place


def _start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot (proc(5), field 22)."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    return None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _is_held(slot: Path) -> bool:
    """Return whether a living process holds the slot.

    Never ask about one's own slot: closing the file here would drop the lock.
    """
    try:
        with slot.open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # somebody has just cleaned up
        return False
    except OSError:
        return True
    return False


def _is_inhabited(server: Path) -> bool:
    """Return whether anybody sits there: another container with the same temporary directory."""
    try:
        return any(_is_held(slot) for slot in server.glob("*/*/*-of-*/slot-*"))
    except FileNotFoundError:
        return True  # somebody is at work there: another front end that removes it, or its owner


def _number(cohort: Path) -> int:
    return int(cohort.name.partition("-")[0])

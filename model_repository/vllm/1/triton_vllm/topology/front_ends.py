"""How the front-end processes of one engine find it and each other.

``instance_group [{ count: N }]`` makes Triton start N stub processes, in any order and with no
channel between them. Each claims a slot in a folder. The first one is the leader: it starts the
engine core and, if there are others, publishes its addresses there. They wait for those and join.

    <tmp>/triton_vllm-<uid>/<server pid>-<its start time>/<model>/<version>[.<engine>]/
    ├── lock             held while a slot is claimed or released
    └── 0-of-4/          one cohort: the N front ends of one load of the model
        ├── slot-0       locked by the leader while it is alive
        ├── slot-1 …     locked by the others
        ├── engine.json  the addresses and process ids, published by the leader
        ├── metrics/     the counts of each front end, in prometheus_client's files
        ├── drained/     made by the leader: all stop accepting HTTP requests
        │   └── 1        front end 1 has answered all that it had accepted
        ├── loads        the loads of several engines (load_balancing.py)
        ├── ranks        the loads of data-parallel ranks (rank_loads.py)
        ├── errors.jsonl errors that the engine's processes log (stub_process.py)
        ├── restarts-exhausted  the leader restarts the engine no more
        └── closing      the leader is stopping the engine

A slot is claimed once. After the first front end has left a cohort or died, no other one may join
it, so a reload never mixes with its predecessor.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from triton_vllm.errors import SettingsError
from triton_vllm.topology.rendezvous import is_held, locked

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineAddresses:
    """Where the engine core talks to each front end, and the processes it consists of.

    ``inputs[i]`` and ``outputs[i]`` are front end i's ZeroMQ addresses; ``stats_update`` is the
    data-parallel coordinator's, where there is one. ``rust_inputs`` are those of vLLM's Rust front
    end, if it is the engine's first client: one for each of its starts.
    """

    inputs: list[str]
    outputs: list[str]
    stats_update: str | None
    processes: list[int]
    rust_inputs: list[str] = field(default_factory=list)
    rust_output: str = ""


class FrontEndSlot:
    """The slot of one of the ``count`` front ends of an engine.

    ``cohort`` is their folder. The leader starts the engine core.
    """

    def __init__(self, cohort: Path, index: int, count: int, held: IO[str]) -> None:
        """Use ``FrontEndSlot.claim``."""
        self.cohort = cohort
        self.index = index
        self.count = count
        self.is_leader = index == 0
        self._held = held
        self._waits = True

    @classmethod
    def claim(cls, directory: Path, count: int) -> FrontEndSlot:
        """Claim the next free slot of ``count`` under ``directory``."""
        with locked(directory):
            numbers = [0]
            for path in sorted(directory.glob("*-of-*"), key=_number):
                numbers.append(_number(path) + 1)
                slots = list(path.glob("slot-*"))
                if not any(is_held(s) for s in slots):
                    shutil.rmtree(path, ignore_errors=True)
                elif (
                    len(slots) < count
                    and path.name.endswith(f"-of-{count}")
                    and all(is_held(s) for s in slots)
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
    def is_closing(self) -> bool:
        """Whether the leader is stopping the engine."""
        return (self.cohort / "closing").exists()

    @property
    def restarts_exhausted(self) -> bool:
        """Whether the leader has no attempt left to restart the engine."""
        return (self.cohort / "restarts-exhausted").exists()

    def others(self) -> list[int]:
        """Return the indexes of the other front ends that are alive."""
        own = Path(self._held.name)
        slots = [slot for slot in self.cohort.glob("slot-*") if slot != own]
        return [int(slot.name.removeprefix("slot-")) for slot in slots if is_held(slot)]

    def occupied(self) -> int:
        """Return how many front ends are alive."""
        return 1 + len(self.others())

    def leader_lives(self) -> bool:
        """Return whether the front end that starts the engine is alive."""
        return self.is_leader or is_held(self.cohort / "slot-0")

    def leader_pid(self) -> int:
        """Return the process id of the leader."""
        return int((self.cohort / "slot-0").read_text(encoding="utf-8"))

    def publish(self, addresses: EngineAddresses) -> None:
        """Publish where the engine is. Leader only."""
        new = self.cohort / "engine.json.new"
        new.write_text(json.dumps(asdict(addresses)), encoding="utf-8")
        new.rename(self.cohort / "engine.json")

    def withdraw(self) -> None:
        """Withdraw the addresses of an engine that has ended. Leader only."""
        (self.cohort / "engine.json").unlink(missing_ok=True)

    async def wait_for_engine(self, died: EngineAddresses | None = None) -> EngineAddresses:
        """Wait until the leader has published an engine other than the one that ``died``.

        Raises SettingsError after ``stop_waiting``, and when the leader has left or does not
        restart the engine. The leader's own error says why.
        """
        while (published := self._published()) is None or published == died:
            if not self._waits:
                raise SettingsError("the model is being unloaded")
            if self.is_closing or self.restarts_exhausted or not self.leader_lives():
                raise SettingsError(
                    "the front end that starts the shared engine has failed; "
                    "see the error of the other instance of this model"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return published

    def _published(self) -> EngineAddresses | None:
        try:
            text = (self.cohort / "engine.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return EngineAddresses(**json.loads(text))

    def release(self) -> None:
        """Release the slot; the last front end to leave removes the folder."""
        with locked(self.cohort.parent):
            if self.is_leader:
                self.announce_closing()
            self._held.close()  # which drops the lock
            others = set(self.cohort.glob("slot-*")) - {Path(self._held.name)}
            if not any(is_held(slot) for slot in others):
                shutil.rmtree(self.cohort, ignore_errors=True)

    def stop_waiting(self) -> None:
        """Let ``wait_for_engine`` fail. Any thread."""
        self._waits = False

    def announce_closing(self) -> None:
        """Tell the others that the engine is about to stop. Leader only."""
        with contextlib.suppress(FileNotFoundError):  # something has tidied up the folder
            (self.cohort / "closing").touch()

    def announce_restarts_exhausted(self) -> None:
        """Tell the others that the engine is not restarted, if this is the leader."""
        if self.is_leader:
            with contextlib.suppress(FileNotFoundError):
                (self.cohort / "restarts-exhausted").touch()

    # Triton finalizes front ends one after the other, and the engine ends with the leader. So the
    # leader has all of them close their HTTP port, and waits for the requests that they accepted.

    def announce_drain(self) -> None:
        """Tell the others to stop accepting, if this is the leader."""
        if self.is_leader and self.count > 1:
            (self.cohort / "drained").mkdir(exist_ok=True)

    def announce_drained(self) -> None:
        """Tell the leader, if it has asked, that every request here has been answered."""
        with contextlib.suppress(FileNotFoundError):
            (self.cohort / "drained" / str(self.index)).touch()

    async def wait_for_drain(self) -> None:
        """Wait until the leader tells the others to stop accepting."""
        while not (self.cohort / "drained").exists():  # noqa: ASYNC110 (another process makes it)
            await asyncio.sleep(_POLL_SECONDS)

    async def wait_for_others(self, seconds: float) -> None:
        """Wait, ``seconds`` at most, until all others have drained or left."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.is_leader and asyncio.get_running_loop().time() < deadline:
            if all((self.cohort / "drained" / str(other)).exists() for other in self.others()):
                return
            await asyncio.sleep(_POLL_SECONDS)


def _number(cohort: Path) -> int:
    return int(cohort.name.partition("-")[0])

"""Front ends that share an engine stop serving HTTP together."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.topology.front_ends import FrontEndSlot


class Slot(FrontEndSlot):
    """A slot whose neighbours are those of ``alive``."""

    def __init__(self, cohort: Path, index: int, alive: list[int]) -> None:
        held: Any = None
        super().__init__(cohort, index, len(alive), held)
        self.alive = alive

    def others(self) -> list[int]:
        return [number for number in self.alive if number != self.index]


def slots(folder: Path, count: int) -> list[Slot]:
    alive = list(range(count))
    return [Slot(folder, index, alive) for index in alive]


def test_a_front_end_alone_waits_for_nobody(tmp_path: Path) -> None:
    """Nothing is shared, so nothing is announced."""
    (alone,) = slots(tmp_path, 1)
    alone.announce_drain()
    alone.announce_drained()
    asyncio.run(asyncio.wait_for(alone.wait_for_others(60), 30))
    assert [] == list(tmp_path.iterdir())


def test_the_leader_waits_until_all_have_finished(tmp_path: Path) -> None:
    """The others hear of it, finish, and only then the leader goes on."""

    async def leave_together() -> list[str]:
        said: list[str] = []
        leader, *others = slots(tmp_path, 3)

        async def follow(number: int, other: Slot) -> None:
            await other.wait_for_drain()
            said.append(f"{number} stops")
            await asyncio.sleep(0.2)
            said.append(f"{number} finished")
            other.announce_drained()

        tasks = [asyncio.create_task(follow(n, other)) for n, other in enumerate(others, 1)]
        leader.announce_drain()
        await leader.wait_for_others(60)
        said.append("leader goes on")
        await asyncio.gather(*tasks)
        return said

    said = asyncio.run(asyncio.wait_for(leave_together(), 30))
    assert {"1 stops", "2 stops", "1 finished", "2 finished"} == set(said[:-1])
    assert "leader goes on" == said[-1]


def test_the_leaders_patience_is_bounded(tmp_path: Path) -> None:
    """A front end that hangs does not keep the engine for ever."""
    leader, _ = slots(tmp_path, 2)
    leader.announce_drain()
    asyncio.run(asyncio.wait_for(leader.wait_for_others(0.3), 30))


def test_the_dead_are_not_waited_for(tmp_path: Path) -> None:
    """Only those that live are asked."""
    leader = Slot(tmp_path, 0, [0])
    leader.announce_drain()
    asyncio.run(asyncio.wait_for(leader.wait_for_others(60), 30))


def test_a_follower_announces_nothing(tmp_path: Path) -> None:
    """One that Triton ends first leaves the others in peace, and finishes for itself."""
    leader, follower = slots(tmp_path, 2)
    follower.announce_drain()
    follower.announce_drained()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(follower.wait_for_drain(), 0.3))
    asyncio.run(asyncio.wait_for(follower.wait_for_others(60), 30))
    assert [] == list(tmp_path.iterdir())
    assert leader is not follower

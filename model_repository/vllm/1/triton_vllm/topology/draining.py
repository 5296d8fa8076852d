"""How front ends that share an engine stop serving HTTP together.

Triton finalizes them one after the other, and the engine ends with the leader. So the leader tells
the others first, and waits until each has answered the requests that it had accepted:

    <cohort>/drained/      made by the leader: all stop accepting
    <cohort>/drained/1     front end 1 has answered all
"""

from __future__ import annotations

import asyncio
import contextlib

from triton_vllm.topology.front_ends import FrontEndSlot, SingleFrontEnd

_POLL_SECONDS = 0.1


def draining(slot: FrontEndSlot | SingleFrontEnd) -> NoDraining:
    """Return how this front end stops together with the others, if there are any."""
    return Draining(slot) if isinstance(slot, FrontEndSlot) else NoDraining()


class NoDraining:
    """The only front end of an engine."""

    def announce(self) -> None:
        """Tell the others to stop accepting, if this front end leads."""

    def finish(self) -> None:
        """Tell the leader that every request here has been answered."""

    async def wait_for_leader(self) -> None:
        """Wait until the leader tells to stop accepting; for ever, if this front end leads."""
        await asyncio.Event().wait()

    async def wait_for_others(self, seconds: float) -> None:
        """Wait until all others have finished or left, if this front end leads."""


class Draining(NoDraining):
    """One of several front ends of an engine."""

    def __init__(self, slot: FrontEndSlot) -> None:
        self._slot = slot
        self._folder = slot.cohort / "drained"

    def announce(self) -> None:  # noqa: D102 (as above)
        if self._slot.is_leader:
            self._folder.mkdir(exist_ok=True)

    def finish(self) -> None:  # noqa: D102
        with contextlib.suppress(FileNotFoundError):  # it has not asked
            (self._folder / str(self._slot.index)).touch()

    async def wait_for_leader(self) -> None:  # noqa: D102
        while self._slot.is_leader or not self._folder.exists():  # noqa: ASYNC110 (a process)
            await asyncio.sleep(_POLL_SECONDS)

    async def wait_for_others(self, seconds: float) -> None:  # noqa: D102
        deadline = asyncio.get_running_loop().time() + seconds
        while self._slot.is_leader and any(
            not (self._folder / str(other)).exists() for other in self._slot.others()
        ):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_POLL_SECONDS)

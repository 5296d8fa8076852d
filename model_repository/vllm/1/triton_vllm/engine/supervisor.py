"""Keeps an engine alive: begins its life, notices its death, and brings it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from triton_vllm.engine.plan import Launch
from triton_vllm.engine.restarts import Restarts
from triton_vllm.engine.run import EngineLife
from triton_vllm.errors import EngineDownError, ServingError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.log import StartupTimer
from triton_vllm.topology.nodes import end_engine

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class Supervisor:
    """The lives of one front end's engine, one after the other. Its coroutines are the loop's.

    ``down`` is why the engine does not serve, None while it does; ``restarts_exhausted`` whether it
    stays so. The leader of several front ends restarts the engine, the others follow it.
    """

    def __init__(
        self,
        launch: Launch,
        loop: EventLoopThread,
        name: str,
        restarts: int,
        *,
        begun: Callable[[EngineLife], Coroutine[Any, Any, None]],
        died: Callable[[ServingError], object],
        ending: Callable[[], Awaitable[None]],
    ) -> None:
        """``begun`` follows each start of the engine, ``ending`` precedes each end.

        ``died`` is told of a death at once, to end the requests that are not the event loop's.

        ``restarts`` is how many tries in a row a dead engine is worth.
        """
        self._launch = launch
        self._slot = launch.slot
        self._loop = loop
        self._name = name
        self._restarts = Restarts(restarts)
        self._begun = begun
        self._died = died
        self._ending = ending
        self._life: EngineLife | None = None
        self._changes = asyncio.Lock()
        self._closing = False
        self.down: ServingError | None = None
        self.restarts_exhausted = False

    @property
    def life(self) -> EngineLife:
        """The life that is, or was the last."""
        assert self._life is not None, "as begin() has been called first"
        return self._life

    @property
    def restarts(self) -> int:
        """How often the engine was restarted."""
        return self._restarts.done

    async def begin(self) -> None:
        """Start the engine, or join the one that another front end starts."""
        async with self._changes:
            died = self._life.addresses if self._life else None
            life = EngineLife(self._launch, self._loop, self._on_death)
            await life.begin(died)
            self._life = life
            await life.lasts(self._begun(life))
        if self._slot.count > 1:
            front_end = f"front end {self._slot.index + 1} of {self._slot.count}"
            logger.info(f"{self._name}: {front_end} joins the engine")

    async def end(self) -> None:
        """End the engine, or leave it to the front end that started it."""
        while self._closing and self._changes.locked():
            end_engine()  # a restart, whose engine nobody wants any more
            await asyncio.sleep(_POLL_SECONDS)
        async with self._changes:
            await self._ending()
            if self._life is not None:
                self._life.end()

    def close(self) -> None:
        """Restart the engine no more. Any thread."""
        self._closing = True
        self._launch.cluster.close()
        self._slot.stop_waiting()

    def refuse(self, why: ServingError) -> None:
        """Let the engine serve no more. Any thread."""
        self.down = self.down or why

    def notice(self) -> None:
        """Look now whether the engine has failed. Event loop only."""
        if self._life is not None:
            self._life.notice()

    def _may_try(self) -> bool:
        """Return whether the engine may come back, which is for the leader to say."""
        slot = self._slot
        if slot.is_leader:
            return self._restarts.may_try()
        return slot.leader_lives() and not slot.restarts_exhausted and not slot.is_closing

    def _on_death(self, life: EngineLife) -> None:
        """End all requests, and restart: the engine has failed. Event loop only."""
        if self.down is not None or life is not self._life or self._slot.is_closing:
            return
        if self._changes.locked():  # it is just beginning, and begin() fails
            return
        self.down = EngineDownError(f"the engine died ({life.failure})")
        logger.error(f"{self._name}: {self.down}")
        why = str(self.down)
        if self._may_try():
            self.down = EngineDownError(f"{why} and is being restarted")
        self._died(self.down)
        self._loop.spawn_background(self._restart(life, why))

    async def _restart(self, life: EngineLife, why: str) -> None:
        """Bring the engine back, with growing patience, as often as the operator allows."""
        await self._loop.end_requests(timeout=1.0)
        await life.end_processes()
        while self._may_try() and not self._closing:
            seconds = self._restarts.start_try()
            number = f"{self._restarts.tries} of {self._restarts.limit}"
            what = f"restarting the engine, try {number}," if self._slot.is_leader else "joining it"
            logger.warning(f"{self._name}: {what} in {seconds:.0f} s")
            await asyncio.sleep(seconds)
            if self._closing:
                return
            timer, began = StartupTimer(self._name), time.monotonic()
            try:
                await self.end()
                await self.begin()
            except Exception as failed:
                logged = self._launch.errors.first(seconds=time.monotonic() - began)
                cause = logged or one_line(failed)
                why = f"the engine died and could not be restarted: {cause}"
                logger.error(f"{self._name}: no restart: {cause}")
            else:
                self._restarts.succeeded()
                self.down = None
                timer.lap("engine restarted")
                return
        if not self._closing and not self._slot.is_closing:  # an unload ends the tries, too
            self._slot.announce_restarts_exhausted()  # so that the others stop waiting
            self.restarts_exhausted = True
            self.down = EngineDownError(why)

"""Keeps an engine alive: begins its life, notices its death, and brings it back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from triton_vllm.engine_life import EngineLife
from triton_vllm.errors import EngineDownError, ServingError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.launch import Launch
from triton_vllm.phases import Phases
from triton_vllm.restarts import Restarts
from triton_vllm.streaming import Log


class Supervisor:
    """The lives of one front end's engine, one after the other. Its coroutines are the loop's.

    ``down`` is why the engine does not serve, None while it does. ``gave_up`` says that nothing
    but a restart of the server brings it back.
    """

    def __init__(
        self,
        launch: Launch,
        loop: EventLoopThread,
        name: str,
        restarts: int,
        *,
        begun: Callable[[EngineLife], Awaitable[None]],
        ending: Callable[[], Awaitable[None]],
        log: Log,
    ) -> None:
        """``begun`` follows each start of the engine, ``ending`` precedes each end.

        ``restarts`` is how many tries in a row a dead engine is worth.
        """
        self._launch = launch
        self._seat = launch.seat
        self._loop = loop
        self._name = name
        self._restarts = Restarts(restarts)
        self._begun = begun
        self._ending = ending
        self._log = log
        self._life: EngineLife | None = None
        self._changes = asyncio.Lock()
        self._closing = False
        self.down: ServingError | None = None
        self.gave_up = False

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
            life = EngineLife(self._launch.vllm, self._loop, self._seat, self._launch.cluster)
            config = self._launch.take_config()
            await life.begin(
                self._launch.args, config, self._launch.engine_cpus, self._on_death, died
            )
            self._life = life
            await self._begun(life)
        if self._seat.count > 1:
            front_end = f"front end {self._seat.index + 1} of {self._seat.count}"
            self._log.log_info(f"{self._name}: {front_end} joins the engine")

    async def end(self) -> None:
        """End the engine, or leave it to the front end that started it."""
        async with self._changes:
            await self._ending()
            if self._life is not None:
                self._life.end()

    def close(self) -> None:
        """Restart the engine no more. Any thread."""
        self._closing = True
        self._launch.cluster.close()

    def refuse(self, why: ServingError) -> None:
        """Let the engine serve no more. Any thread."""
        self.down = self.down or why

    def _on_death(self, life: EngineLife, pid: int) -> None:
        """End all requests, and restart: a process of the engine has exited. Event loop only."""
        if self.down is not None or life is not self._life or self._seat.is_closing:
            return
        self.down = EngineDownError(f"the engine died (process {pid})")
        self._log.log_error(f"{self._name}: {self.down}")
        if not self._restarts.may_try() or not self._seat.leader_lives():
            self.gave_up = True
            self._loop.cancel_requests()
        else:
            self.down = EngineDownError(f"{self.down} and is being restarted")
            self._loop.spawn_background(self._restart())

    async def _restart(self) -> None:
        """Bring the engine back, with growing patience, as often as the operator allows."""
        await self._loop.end_requests(timeout=1.0)
        error: Exception = EngineDownError("not tried")
        while self._restarts.may_try() and self._seat.leader_lives() and not self._closing:
            seconds = self._restarts.start_try()
            self._log.log_warn(
                f"{self._name}: restarting the engine in {seconds:.0f} s, try "
                f"{self._restarts.tries} of {self._restarts.limit}"
            )
            await asyncio.sleep(seconds)
            if self._closing:
                return
            phases = Phases(self._name, self._log)
            try:
                await self.end()
                await self.begin()
            except Exception as failed:
                error = failed
                self._log.log_error(f"{self._name}: no restart: {one_line(failed)}")
            else:
                self._restarts.succeeded()
                self.down = None
                phases.done("engine restarted")
                return
        # An unload ends the tries, too, and the leader says so to the others.
        self.gave_up = not self._closing and not self._seat.is_closing
        if self._seat.is_leader and not self._closing:
            self._seat.announce_closing()  # so that the others stop waiting
        self.down = EngineDownError(
            f"the engine died and could not be restarted: {one_line(error)}"
        )

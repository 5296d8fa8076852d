"""One life of vLLM's engine, from its start, or the joining of a shared one, to its end.

When an engine dies, its life is ended and another begun (``Supervisor``): nothing of the old one
stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from triton_vllm.cluster import Cluster
from triton_vllm.cpus import engine_on
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.shared_engine import EngineAddresses, NoSeat, Seat

if TYPE_CHECKING:
    from triton_vllm import vllm_api

_SHUTDOWN_SECONDS = 10.0  # a worker on a CPU takes 4 to leave, and the engine core waits for it


class EngineLife:
    """An ``AsyncLLM`` and the processes behind it. Everything here belongs to the event loop.

    ``addresses`` are those of the shared engine, None where the engine is this front end's own.
    """

    def __init__(
        self, vllm: Any, loop: EventLoopThread, seat: Seat | NoSeat, cluster: Cluster
    ) -> None:
        """``vllm`` is the module ``vllm_api``, imported late."""
        self._cluster = cluster
        self._vllm = vllm
        self._loop = loop
        self._seat = seat
        self._cleanup = contextlib.ExitStack()
        self.addresses: EngineAddresses | None = None

    async def begin(
        self,
        args: vllm_api.AsyncEngineArgs,
        config: Any,
        engine_cpus: frozenset[int],
        on_death: Callable[[EngineLife, int], None],
        died: EngineAddresses | None,
    ) -> None:
        """Start the engine, or join the one that the leader starts.

        ``on_death`` is called once for each process of the engine that exits. ``died`` is where the
        engine was that is to be replaced. What goes wrong is raised, and leaves nothing behind.
        """
        try:
            front_end: dict[str, Any] = {}
            processes: set[int] = set()
            if isinstance(self._seat, Seat):
                front_end, processes = await self._join(self._seat, args, engine_cpus, died)
            self.llm = await self._start(
                engine_cpus,
                lambda: self._vllm.create_engine(args, config, **front_end),
                launches=not front_end,
            )
            self._cleanup.callback(self._stop_front_end)
            if self._seat.is_leader:
                watch = asyncio.create_task(self._cluster.watch(self.llm))
                self._cleanup.callback(watch.cancel)
            for pid in processes or self._vllm.engine_processes(self.llm):
                self._loop.on_exit(pid, lambda pid: on_death(self, pid))
        except BaseException:
            self.end()
            raise
        # What lives now lives for ever: keep the collector from walking it during decoding.
        gc.collect()
        gc.freeze()

    async def _start(
        self, engine_cpus: frozenset[int], start: Callable[[], Any], *, launches: bool
    ) -> Any:
        """Start what blocks for as long as a model loads; the event loop goes on answering.

        ``launches``: the engine itself, for which the machines must be there.
        """
        gathered = self._cluster.gather() if launches else contextlib.nullcontext()

        def on_its_cpus() -> Any:
            with gathered, engine_on(engine_cpus):
                return start()

        return await self._loop.in_thread(on_its_cpus)

    async def _join(
        self,
        seat: Seat,
        args: vllm_api.AsyncEngineArgs,
        engine_cpus: frozenset[int],
        died: EngineAddresses | None,
    ) -> tuple[dict[str, Any], set[int]]:
        """Launch the shared engine if this front end leads; return where it is, and its processes.

        The leader is one of them: it takes the engine along when it dies.
        """
        if seat.is_leader:
            cores = await self._start(
                engine_cpus, lambda: self._vllm.EngineCores(args, seat.count), launches=True
            )
            self._cleanup.callback(cores.shutdown, timeout=_SHUTDOWN_SECONDS)
            self._cleanup.callback(seat.withdraw)
            seat.publish(cores.addresses)
        self.addresses = await seat.wait_for_engine(died)
        front_end = {
            "client_addresses": {
                "input_address": self.addresses.inputs[seat.index],
                "output_address": self.addresses.outputs[seat.index],
                "stats_update_address": self.addresses.stats_update,
            },
            "client_count": seat.count,
            "client_index": seat.index,
        }
        leader = set() if seat.is_leader else {seat.leader_pid()}
        return front_end, {*self.addresses.processes, *leader}

    def end(self) -> None:
        """End the front end's part, and the engine's processes where they are ours."""
        self._cleanup.close()
        gc.unfreeze()
        gc.collect()

    def _stop_front_end(self) -> None:
        # In the loop: so vLLM's output task is cancelled before it can fail.
        self.llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        # While Python still stands: vLLM's own __del__ fails when the interpreter is going down.
        del self.llm

"""One life of vLLM's engine, from its start, or the joining of a shared one, to its end.

When an engine dies, its life is ended and another begun (``Supervisor``): nothing of the old one
stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from triton_vllm.engine.plan import Launch
from triton_vllm.errors import EngineDownError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.topology.cpus import engine_on
from triton_vllm.topology.front_ends import EngineAddresses, FrontEndSlot

_SHUTDOWN_SECONDS = 10.0  # a worker on a CPU takes 4 to leave, and the engine core waits for it
_LOOK_SECONDS = 0.1  # between two questions whether vLLM has given the engine up
# A broken engine tidies up and leaves by itself, if it can; then its processes are killed.
_LEAVE_SECONDS = 3.0
_GONE_SECONDS = 10.0  # for the kernel to be done with a killed process, and with its GPU memory
_CAUSE_SECONDS = 10.0  # an error that was logged so shortly before a death is its cause
_CAUSE_LENGTH = 500  # characters, of what clients are told


class EngineLife:
    """An ``AsyncLLM`` and the processes behind it. Everything here belongs to the event loop.

    ``addresses`` are those of the shared engine, None where the engine is this front end's own.
    ``failure`` is what ended it, empty while it lives.
    """

    def __init__(
        self, launch: Launch, loop: EventLoopThread, on_death: Callable[[EngineLife], None]
    ) -> None:
        """``on_death`` is called once, when the engine fails or a process of it exits."""
        self._launch = launch
        self._vllm: Any = launch.vllm
        self._loop = loop
        self._slot = launch.slot
        self._on_death = on_death
        self._cleanup = contextlib.ExitStack()
        self._processes: set[int] = set()
        self._gone = asyncio.Event()  # all of them
        self._failed = asyncio.Event()
        self.addresses: EngineAddresses | None = None
        self.failure = ""

    async def begin(self, died: EngineAddresses | None) -> None:
        """Start the engine, or join the one that the leader starts.

        ``died`` is where the engine was that is to be replaced. What goes wrong is raised, and
        leaves nothing behind.
        """
        try:
            config = await self._loop.in_thread(self._launch.take_config)
            if self._slot.is_leader:
                self._launch.errors.clear()
            front_end = (
                await self._join(self._slot, died) if isinstance(self._slot, FrontEndSlot) else {}
            )
            self.llm = await self._start(
                lambda: self._vllm.create_engine(self._launch.args, config, **front_end),
                launches=not front_end,
            )
            self._cleanup.callback(self._stop_front_end)
            self._watch()
        except BaseException:
            self.end()
            raise
        # What lives now lives for ever: keep the collector from walking it during decoding.
        gc.collect()
        gc.freeze()

    async def _start(self, start: Callable[[], Any], *, launches: bool) -> Any:
        """Start what blocks for as long as a model loads; the event loop goes on answering.

        ``launches``: the engine itself, for which the machines must be there.
        """
        gathered = self._launch.cluster.wait_for_nodes() if launches else contextlib.nullcontext()

        def on_its_cpus() -> Any:
            with gathered, engine_on(self._launch.engine_cpu_affinity):
                return start()

        return await self._loop.in_thread(on_its_cpus)

    async def _join(self, slot: FrontEndSlot, died: EngineAddresses | None) -> dict[str, Any]:
        """Launch the shared engine if this front end leads; return what it is to this front end."""
        if slot.is_leader:
            cores = await self._start(
                lambda: self._vllm.EngineCores(self._launch.args, slot.count), launches=True
            )
            self._cleanup.callback(cores.shutdown, timeout=_SHUTDOWN_SECONDS)
            self._cleanup.callback(slot.withdraw)
            slot.publish(cores.addresses)
        self.addresses = await slot.wait_for_engine(died)
        return {
            "client_addresses": {
                "input_address": self.addresses.inputs[slot.index],
                "output_address": self.addresses.outputs[slot.index],
                "stats_update_address": self.addresses.stats_update,
            },
            "client_count": slot.count,
            "client_index": slot.index,
        }

    def _watch(self) -> None:
        """Notice how this life ends: a process exits, vLLM gives up, or the cluster is lost."""
        shared = self.addresses
        own = shared.processes if shared else self._vllm.engine_processes(self.llm)
        self._processes = set(own)
        # A leader that dies takes the engine along.
        slot = self._slot
        leader = (
            {slot.leader_pid()} if isinstance(slot, FrontEndSlot) and not slot.is_leader else set()
        )
        for pid in self._processes | leader:
            self._cleanup.callback(self._loop.on_exit(pid, self._exited))
        watchers = [asyncio.create_task(self._look())]
        if self._slot.is_leader:
            watchers.append(asyncio.create_task(self._launch.cluster.watch(self.llm)))
        for watcher in watchers:
            self._cleanup.callback(watcher.cancel)

    async def _look(self) -> None:
        while not self.failure:
            self.notice()
            await asyncio.sleep(_LOOK_SECONDS)

    def notice(self) -> None:
        """See whether vLLM has given the engine up, whose process may live on for a while."""
        if not self.failure and self._vllm.has_failed(self.llm):
            self._fail("")

    def _exited(self, pid: int) -> None:
        self._processes.discard(pid)
        if not self._processes:
            self._gone.set()
        if not self.failure:
            self._fail(f"process {pid}")

    def _fail(self, what: str) -> None:
        cause = one_line(self._launch.errors.first(_CAUSE_SECONDS), _CAUSE_LENGTH)
        self.failure = ": ".join(filter(None, (what, cause))) or "vLLM gave it up, its log says why"
        self._failed.set()
        self._on_death(self)

    async def lasts(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work`` with this engine. Raises EngineDownError when it fails meanwhile.

        vLLM lets who waits for an engine's answer wait for ever when the engine dies.
        """
        working = asyncio.create_task(work)
        failing = asyncio.create_task(self._failed.wait())
        await asyncio.wait((working, failing), return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        if self.failure:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            raise EngineDownError(f"the engine died ({self.failure})")
        await working

    async def end_processes(self) -> None:
        """See to it that the processes of a failed engine end, whatever they hang in."""
        await self._until_gone(_LEAVE_SECONDS)
        for pid in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._until_gone(_GONE_SECONDS)

    async def _until_gone(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)

    def end(self) -> None:
        """End the front end's part, and the engine's processes where they are ours."""
        self.failure = self.failure or "ended"
        self._cleanup.close()
        gc.unfreeze()
        gc.collect()

    def _stop_front_end(self) -> None:
        # In the loop: so vLLM's output task is cancelled before it can fail.
        self._vllm.shut_down(self.llm, _SHUTDOWN_SECONDS)
        # While Python still stands: vLLM's own __del__ fails when the interpreter is going down.
        del self.llm

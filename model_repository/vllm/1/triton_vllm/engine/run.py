"""One run of vLLM's engine, from its start, or the joining of a shared one, to its end.

When an engine dies, its run is ended and another one started (``Supervisor``): nothing of the old
one stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from triton_vllm.config.lora import Adapters, NoAdapters
from triton_vllm.engine.plan import EnginePlan
from triton_vllm.errors import EngineDownError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.topology.cpus import pin_engine
from triton_vllm.topology.front_ends import EngineAddresses, FrontEndSlot
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.render.renderers import Renderers

_POLL_SECONDS = 0.1  # between two questions whether vLLM has reported a fatal error
# A broken engine tidies up and leaves by itself, if it can; then its processes are killed.
_LEAVE_SECONDS = 3.0
_GONE_SECONDS = 10.0  # for the kernel to be done with a killed process, and with its GPU memory
_CAUSE_SECONDS = 10.0  # an error that was logged so shortly before a death is its cause
_CAUSE_LENGTH = 500  # characters, of what clients are told


class EngineRun:
    """A running ``AsyncLLM`` and the processes behind it. Everything belongs to the event loop.

    ``addresses`` are those of the shared engine, None where the engine is this front end's own.
    ``failure`` is what ended it, empty while it runs.
    """

    def __init__(
        self,
        plan: EnginePlan,
        loop: EventLoopThread,
        llm: Any,
        renderers: Renderers,
        addresses: EngineAddresses | None,
        on_failure: Callable[[EngineRun], None],
        end_seconds: Callable[[], float],
        held: contextlib.ExitStack,
    ) -> None:
        """Use ``EngineRun.start``. ``held`` is released by ``end``."""
        self.llm = llm
        self.renderers = renderers
        self.addresses = addresses
        self.failure = ""
        self._plan = plan
        self._on_failure = on_failure
        self._end_seconds = end_seconds
        self._held = held
        self._gone = asyncio.Event()  # all of the processes
        self._failed = asyncio.Event()
        self._processes = set(addresses.processes if addresses else vllm_api.engine_processes(llm))
        held.callback(self._shut_down_front_end)
        self._watch(loop)

    @classmethod
    async def start(
        cls,
        plan: EnginePlan,
        config: Any,
        loop: EventLoopThread,
        adapters: Adapters | NoAdapters,
        replaced: EngineAddresses | None,
        on_failure: Callable[[EngineRun], None],
        end_seconds: Callable[[], float],
    ) -> EngineRun:
        """Start the engine, or join the one that the leader starts.

        ``config`` is vLLM's, unused so far. ``replaced`` are the addresses of the engine that died,
        if any. ``on_failure`` is called once, when the engine fails or a process of it exits,
        ``end_seconds`` when it is to end: that many seconds later it is killed.
        Raises what went wrong, and leaves nothing behind then.
        """
        held = contextlib.ExitStack()
        try:
            if plan.slot.is_leader:
                plan.errors.clear()
            addresses, front_end = None, {}
            if plan.slot.count + plan.settings.rust_clients > 1:
                addresses = await _join(plan, loop, replaced, held, end_seconds)
                front_end = _front_end_of(addresses, plan.slot, plan.settings.rust_clients)
            llm = await _start(
                plan,
                loop,
                lambda: vllm_api.create_engine(plan.args, config, **front_end),
                launches=not front_end,
            )
            if plan.slot.count > 1 and not plan.settings.rust_clients:
                vllm_api.choose_ranks_together(llm, plan.slot, held)
            renderers = Renderers(llm, adapters)
            run = cls(plan, loop, llm, renderers, addresses, on_failure, end_seconds, held)
        except BaseException:
            held.close()
            raise
        # What is alive now stays: keep the collector from walking it while tokens are decoded.
        gc.collect()
        gc.freeze()
        return run

    def _watch(self, loop: EventLoopThread) -> None:
        """Notice its failure: a process exits, vLLM reports it, or the cluster is lost."""
        # A leader that dies takes the engine along.
        slot = self._plan.slot
        leader = set() if slot.is_leader else {slot.leader_pid()}
        for pid in self._processes | leader:
            self._held.callback(loop.on_exit(pid, self._exited))
        watchers = [asyncio.create_task(self._poll())]
        if slot.is_leader:
            watchers.append(asyncio.create_task(self._plan.cluster.watch(self.llm)))
        for watcher in watchers:
            self._held.callback(watcher.cancel)

    async def _poll(self) -> None:
        while not self.failure:
            self.check()
            await asyncio.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """See whether vLLM has reported a fatal error, whose process may run on for a while."""
        if not self.failure and vllm_api.has_failed(self.llm):
            self._fail("")

    def _exited(self, pid: int) -> None:
        self._processes.discard(pid)
        if not self._processes:
            self._gone.set()
        if not self.failure:
            self._fail(f"process {pid}")

    def _fail(self, what: str) -> None:
        logged = vllm_api.as_keys(self._plan.errors.first(_CAUSE_SECONDS))
        cause = one_line(logged, _CAUSE_LENGTH)
        unknown = "vLLM reported a fatal error, see its log"
        self.failure = ": ".join(filter(None, (what, cause))) or unknown
        self._failed.set()
        self._on_failure(self)

    async def until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Await ``work`` with this engine. Raises EngineDownError when it fails meanwhile.

        vLLM never wakes callers that wait for an engine that has died.
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
        """Wait for the processes of a failed engine to end; kill those that hang."""
        await self._until_gone(_LEAVE_SECONDS)
        for pid in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._until_gone(_GONE_SECONDS)

    async def _until_gone(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)

    def end(self) -> None:
        """End this front end's part, and the engine's processes where it has started them."""
        self.failure = self.failure or "ended"
        self._held.close()
        gc.unfreeze()
        gc.collect()

    def _shut_down_front_end(self) -> None:
        # In the loop: so vLLM's output task is cancelled before it can fail.
        vllm_api.shut_down(self.llm, self._end_seconds())
        # Now, as vLLM's own __del__ fails when the interpreter is going down.
        del self.llm, self.renderers


async def _start(
    plan: EnginePlan, loop: EventLoopThread, start: Callable[[], Any], *, launches: bool
) -> Any:
    """Call what blocks for as long as a model loads; the event loop goes on answering.

    ``launches``: it starts the engine itself, which needs all nodes.
    """
    gathered = plan.cluster.wait_for_nodes() if launches else contextlib.nullcontext()

    def on_its_cpus() -> Any:
        forked = vllm_api.cores_from(plan.fork_server, plan.config)
        with gathered, pin_engine(plan.engine_cpus), forked:
            return start()

    return await loop.in_thread(on_its_cpus)


async def _join(
    plan: EnginePlan,
    loop: EventLoopThread,
    replaced: EngineAddresses | None,
    held: contextlib.ExitStack,
    end_seconds: Callable[[], float],
) -> EngineAddresses:
    """Launch the shared engine if this front end leads; return its addresses."""
    slot = plan.slot
    if slot.is_leader:
        cores = await _start(
            plan,
            loop,
            lambda: vllm_api.EngineCores(plan.args, slot.count, plan.settings.rust_clients),
            launches=True,
        )
        held.callback(lambda: cores.shutdown(timeout=end_seconds()))
        held.callback(slot.withdraw)
        slot.publish(cores.addresses)
    return await slot.wait_for_engine(replaced)


def _front_end_of(addresses: EngineAddresses, slot: FrontEndSlot, first: int) -> dict[str, Any]:
    """Return what vLLM has to know of this front end; the engine's ``first`` clients are others."""
    return {
        "client_addresses": {
            "input_address": addresses.inputs[slot.index],
            "output_address": addresses.outputs[slot.index],
            "stats_update_address": addresses.stats_update,
        },
        "client_count": first + slot.count,
        "client_index": first + slot.index,
    }

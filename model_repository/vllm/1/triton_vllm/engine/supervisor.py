"""Keeps an engine running: starts it, notices its death, and restarts it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from triton_vllm.config.lora import Adapters, NoAdapters
from triton_vllm.engine.plan import EnginePlan
from triton_vllm.engine.run import EngineRun
from triton_vllm.errors import EngineDownError
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.grammar import GrammarSandbox, NoGrammarSandbox, grammar_sandbox
from triton_vllm.log import StartupTimer
from triton_vllm.openai_api.server import NoOpenAIServer
from triton_vllm.topology.nodes import end_engine
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.structured_outputs import StructuredOutputsCheck

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_END_SECONDS = 1.0  # for requests that are being cancelled
_LONGEST_WAIT = 30.0  # seconds between two attempts
_RESET_AFTER = 300.0  # seconds of running that make the next death the first one again


class RestartPolicy:
    """Says whether, and how soon, a dead engine is restarted.

    ``attempts`` counts those in a row, of which ``limit`` are allowed; ``restarts`` those that
    succeeded, in all.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.attempts = 0
        self.restarts = 0
        self._clock = clock
        self._running_since: float | None = clock()

    def may_try(self) -> bool:
        """Return whether one more attempt is allowed."""
        self._reset()
        return self.attempts < self.limit

    def start_attempt(self) -> float:
        """Count an attempt, allowed or not; return the seconds before it: 0, 1, 2, 4, up to 30."""
        self._reset()
        self.attempts += 1
        self._running_since = None  # however long the attempt takes
        return min(_LONGEST_WAIT, 2.0 ** min(self.attempts - 2, 10)) if self.attempts > 1 else 0.0

    def _reset(self) -> None:
        if self._running_since is not None and self._clock() - self._running_since > _RESET_AFTER:
            self.attempts = 0

    def succeeded(self) -> None:
        """Count a restart: the engine runs again."""
        self.restarts += 1
        self._running_since = self._clock()


class Supervisor:
    """The runs of one front end's engine, one after the other. Event loop only.

    ``admission.down`` says why there is none now. ``restarts_exhausted``: there will be no other.
    The leader of several front ends restarts the engine, the others follow it.
    """

    def __init__(
        self,
        plan: EnginePlan,
        loop: EventLoopThread,
        adapters: Adapters | NoAdapters,
        admission: Admission,
        openai: NoOpenAIServer,
        end_seconds: Callable[[], float],
    ) -> None:
        """``end_seconds`` is asked when an engine is to end, for the time that it has."""
        self._plan = plan
        self._slot = plan.slot
        self._name = plan.settings.name
        self._loop = loop
        self._adapters = adapters
        self._admission = admission
        self._openai = openai
        self._end_seconds = end_seconds
        self._run: EngineRun | None = None
        self._grammars: GrammarSandbox | NoGrammarSandbox | None = None
        self._changes = asyncio.Lock()
        self._closing = False
        self.policy = RestartPolicy(plan.settings.serving.max_engine_restarts)
        self.restarts_exhausted = False

    @property
    def run(self) -> EngineRun:
        """The run of now, or the last one."""
        assert self._run is not None, "as start() has been called first"
        return self._run

    async def start(self) -> None:
        """Start the engine, or join the one that another front end starts; open it to requests."""
        plan = self._plan
        async with self._changes:
            config, replaced = plan.config, None
            if self._run is not None:
                config = await self._loop.in_thread(lambda: vllm_api.create_config(plan.args))
                replaced = self._run.addresses
            run = self._run = await EngineRun.start(
                plan,
                config,
                self._loop,
                self._adapters,
                replaced,
                self._on_failure,
                self._end_seconds,
            )
            await run.until_failure(self._open(run))
        if self._slot.count > 1:
            front_end = f"front end {self._slot.index + 1} of {self._slot.count}"
            logger.info(f"{self._name}: {front_end} joins the engine")

    async def _open(self, run: EngineRun) -> None:
        """Attach the guards to a started engine, then let requests in, over HTTP too."""
        serving = self._plan.settings.serving
        if self._grammars is None:
            self._grammars = grammar_sandbox(
                serving.grammar_compile_timeout_seconds, vllm_api.grammar_tokenizer(run.llm)
            )
        run.llm.check_grammar = StructuredOutputsCheck(
            run.llm,
            self._grammars.check,
            refuse=serving.unsupported_schema_keywords == "refuse",
        ).check
        run.llm.join_queue = self._admission.join_queue
        run.llm.turn_away = self._admission.end_current
        run.llm.max_sequences = serving.max_n
        await run.renderers.prepare(self._plan.chat)
        await self._openai.serve(run.llm, run.addresses)

    def close(self) -> None:
        """Restart the engine no more. Any thread."""
        self._closing = True
        self._plan.cluster.close()
        self._plan.fork_server.close()
        self._slot.stop_waiting()

    async def shut_down(self) -> None:
        """End the engine for good, or leave it to the front end that has started it."""
        if self._slot.is_leader:
            self._slot.announce_closing()
        while self._closing and self._changes.locked():
            end_engine()  # one that is being restarted
            await asyncio.sleep(_POLL_SECONDS)
        await self._end()
        if self._grammars is not None:
            self._grammars.stop()

    async def _end(self) -> None:
        async with self._changes:
            await self._admission.wait(_END_SECONDS)
            if self._run is not None:
                self._run.end()

    def check(self) -> None:
        """Look now whether the engine has failed."""
        if self._run is not None:
            self._run.check()

    def _may_try(self) -> bool:
        """Return whether the engine may come back, which the leader decides."""
        slot = self._slot
        if slot.is_leader:
            return self.policy.may_try()
        return slot.leader_lives() and not slot.restarts_exhausted and not slot.is_closing

    def _on_failure(self, run: EngineRun) -> None:
        """End all requests, and restart: the engine has failed."""
        admission = self._admission
        if admission.down is not None or run is not self._run or self._slot.is_closing:
            return
        if self._changes.locked():  # it is just starting, and start() fails
            return
        why = f"the engine died ({run.failure})"
        logger.error(f"{self._name}: {why}")
        down = f"{why} and is being restarted" if self._may_try() else why
        admission.down = EngineDownError(down)
        admission.end_all(admission.down)
        self._openai.suspend()
        self._loop.spawn(self._restart(run, why))

    async def _restart(self, run: EngineRun, why: str) -> None:
        """Restart the engine, after growing delays, as often as the operator allows."""
        await self._admission.wait(_END_SECONDS)
        await run.end_processes()
        while self._may_try() and not self._closing:
            seconds = self.policy.start_attempt()
            number = f"{self.policy.attempts} of {self.policy.limit}"
            what = f"restarting the engine, try {number}," if self._slot.is_leader else "joining it"
            when = f"in {seconds:.0f} s" if seconds else "now"
            logger.warning(f"{self._name}: {what} {when}")
            await asyncio.sleep(seconds)
            if self._closing:
                return
            timer, began = StartupTimer(self._name), time.monotonic()
            try:
                await self._end()
                await self.start()
            except Exception as failed:
                logged = self._plan.errors.first(seconds=time.monotonic() - began)
                cause = vllm_api.as_keys(logged or failed)
                why = f"the engine died and could not be restarted: {cause}"
                logger.error(f"{self._name}: no restart: {cause}")
            else:
                self.policy.succeeded()
                self._admission.down = None
                timer.lap("engine restarted")
                return
        if not self._closing and not self._slot.is_closing:  # an unload ends the attempts, too
            self.restarts_exhausted = True
            self._admission.down = EngineDownError(why)
            self._slot.announce_restarts_exhausted()  # so that the others stop waiting

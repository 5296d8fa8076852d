"""The engine as requests see it: vLLM's AsyncLLM in an event loop of its own.

``load_engine`` makes it, and the ``Supervisor`` keeps it running; this module admits and renders
requests, explains their failures, and shuts everything down.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from triton_vllm.counters import LoopLag
from triton_vllm.engine.plan import EnginePlan
from triton_vllm.engine.supervisor import Supervisor
from triton_vllm.errors import (
    EngineDownError,
    GenerationError,
    ServingError,
    UnavailableError,
    one_line,
)
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import TRITON, Admission, LiveRequest
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.drain import UNLOADING
from triton_vllm.limits.server_watch import NoWatch, ServerWatch
from triton_vllm.openai_api.server import NoOpenAIServer
from triton_vllm.protocol.decode import Parser
from triton_vllm.protocol.requests import Generation, GenerationRequest
from triton_vllm.protocol.schema_errors import checked
from triton_vllm.protocol.stream import ResponseStream
from triton_vllm.vllm_api import api as vllm_api

logger = logging.getLogger(__name__)

_END_SECONDS = 1.0  # for requests that are being cancelled


@dataclass(eq=False)
class Engine:
    """One vLLM engine, seen from one front end; ``load.load_engine`` makes it.

    ``plan`` is its configuration, ``parser`` reads the parameters of a request, ``openai`` is the
    HTTP server, ``answers`` checks what is generated against its schema, ``lag`` is the event
    loop's, ``held`` is what ``shutdown`` releases last. Methods may be called by any thread, except
    where stated.
    """

    plan: EnginePlan
    loop: EventLoopThread
    admission: Admission
    supervisor: Supervisor
    openai: NoOpenAIServer
    parser: Parser
    answers: AnswerCheck
    lag: LoopLag
    watch: ServerWatch | NoWatch
    held: contextlib.ExitStack
    _ending: asyncio.Task[None] | None = field(default=None, init=False)

    @property
    def is_up(self) -> bool:
        """Whether the engine serves."""
        return self.admission.down is None

    @property
    def restarts(self) -> int:
        """How often the engine was restarted."""
        return self.supervisor.policy.restarts

    @property
    def restarts_exhausted(self) -> bool:
        """Whether an engine that died is not restarted any more."""
        return self.supervisor.restarts_exhausted

    def vllm_metrics(self) -> vllm_api.Metrics:
        """Return vLLM's own metrics, of all front ends."""
        return vllm_api.Metrics()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start the coroutine of a request, which must ``admit`` it, in the event loop."""
        self.plan.balancer.accepted()
        self.loop.spawn(coroutine)

    def admit(
        self, request: GenerationRequest, stream: ResponseStream
    ) -> contextlib.AbstractContextManager[LiveRequest]:
        """Return the context in which ``request`` is live and has its timeout. Event loop only."""
        options = request.options

        def finish() -> None:
            """Have vLLM end it: its outputs end with the text so far, ``finish_reason`` abort."""
            stream.outcome = "timeout"
            self.loop.spawn(self.supervisor.run.llm.abort(request.request_id))

        return self.admission.admit(
            TRITON,
            options.timeout_seconds or self.plan.settings.serving.default_timeout_seconds,
            finish=finish if options.on_timeout == "finish" else None,
        )

    async def render(self, request: GenerationRequest) -> Generation:
        """Turn the prompt into token ids. Raises RequestError when it exceeds the context."""
        generation = await self.supervisor.run.renderers.render(request)
        return checked(generation, request, self.answers)

    def backpressure(self) -> None:
        """Delay the return of ``execute`` while this engine has more requests than another."""
        self.plan.balancer.backpressure()

    def to_serving_error(self, error: BaseException, request_id: str) -> ServingError:
        """Return the error that a client gets; log what the operator should know of it."""
        if isinstance(error, asyncio.CancelledError):  # the event loop is being stopped
            return self.admission.down or UnavailableError(UNLOADING)
        if isinstance(error, Exception):
            explained = vllm_api.to_serving_error(error)
        else:  # a panic of Rust's, as in tokenizers, or a library that calls sys.exit
            explained = GenerationError(f"{type(error).__name__}: {one_line(error)}")
        if vllm_api.came_with_outputs(error):
            self.supervisor.check()  # vLLM may have told this request of the engine's death
            if self.admission.down or isinstance(explained, EngineDownError):
                return self.admission.down or explained
        if isinstance(explained, GenerationError):
            logger.error(f"{request_id}: generation failed: {explained}")
        elif type(error) in (TypeError, ValueError):
            # Before vLLM had errors of its own for it, these meant a wrong request; they may also
            # mean a fault of this package, so let the operator see them.
            logger.warning(f"{request_id}: refused: {type(error).__name__}: {one_line(error)}")
        return explained

    async def end_without_triton(self) -> None:
        """End what serves, unless it ends already. The drain is over, and Triton holds the model.

        It does so while a client leaves a gRPC stream open; and Triton 25.05 and newer look only
        once a second whether the streams have ended. Event loop only.
        """
        if self._ending is None:
            logger.warning(
                f"{self.plan.settings.name}: Triton still holds the model after the drain (it may "
                "take a second, and longer while a gRPC stream is open): the engine ends"
            )
        await self._end()

    def shutdown(self) -> None:
        """End the engine and what may be left of requests. Called once.

        Triton calls this only when every request has had its FINAL flag: its response objects keep
        the model alive. So only HTTP requests have to be waited for.
        """
        # 1. No drain begins from now on.
        self.watch.stop()
        # 2. What serves ends, if it has not done so at the end of a drain.
        try:
            self.loop.call(self._end())
        finally:
            # 3. The event loop's thread ends, its background work with it.
            self.loop.stop()
            # 4. The port, the front end's slot and its folders are released.
            self.held.close()
            # 5. Or Python walks all that vLLM has imported once more before the process ends:
            # seconds, for which Triton waits, of one front end after the other.
            gc.freeze()

    async def _end(self) -> None:
        """End what serves, once; wait for that."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_in_order())
        await self._ending

    async def _end_in_order(self) -> None:
        # 1. No restart begins from now on.
        self.supervisor.close()
        # 2. The OpenAI port is closed, by all front ends of the engine; its requests get time.
        await self.openai.shut_down()
        # 3. What is left is ended.
        if ended := await self._end_requests():
            logger.warning(f"{self.plan.settings.name}: {ended} requests aborted by the unload")
        # 4. The engine ends, or is left to the front end that has started it.
        await self.supervisor.shut_down()

    async def _end_requests(self) -> int:
        admission = self.admission
        admission.down = admission.down or UnavailableError("the model is being unloaded")
        ended = admission.end_all(admission.down)
        await admission.wait(_END_SECONDS)
        return ended

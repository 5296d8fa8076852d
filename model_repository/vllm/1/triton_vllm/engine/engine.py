"""The engine as requests see it: vLLM's AsyncLLM in an event loop of its own.

What it is to be says ``Launch``, its life and its restarts are the ``Supervisor``'s; here is how a
request is admitted, rendered, limited, cancelled and, when it fails, explained.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import traceback
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.counters import LoopLag
from triton_vllm.engine.plan import Launch
from triton_vllm.engine.service import Service
from triton_vllm.engine.supervisor import Supervisor
from triton_vllm.errors import (
    CancelledError,
    EngineDownError,
    GenerationError,
    ServingError,
    SettingsError,
    UnavailableError,
    one_line,
)
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission, Place
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.drain import Drain, drain_timeout_seconds, watch_server
from triton_vllm.limits.timeout import Deadline, NoDeadline
from triton_vllm.log import StartupTimer
from triton_vllm.openai_api.server import openai_server
from triton_vllm.protocol.decode import Parser
from triton_vllm.protocol.generation import Generation
from triton_vllm.protocol.requests import GenerationRequest
from triton_vllm.protocol.stream import ResponseStream
from triton_vllm.topology.front_ends import FrontEndSlot
from triton_vllm.topology.stub_process import EngineErrors

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from triton_vllm.vllm_api import api as vllm_api

_LOG_STATS_SECONDS = 10.0


class Engine:
    """One vLLM engine, seen from one front end.

    Coroutines run in the engine's event loop; the other methods may be called by any thread.
    ``slot`` is the place among the front ends, ``label`` tells the metrics of the model's engines
    apart, ``lag`` is the event loop's, ``openai`` the HTTP server. A request is inside
    ``admission`` from its first step to its last.
    """

    def __init__(self, settings: ModelSettings) -> None:
        """Import vLLM, load the model, warm it up: seconds to minutes.

        Raises SettingsError, one line with what the operator can mend, or what vLLM raised.
        """
        self._settings = settings
        self._server = ServerOptions.read()
        self._cleanup = contextlib.ExitStack()
        self._errors: EngineErrors | None = None
        self.lag = LoopLag()
        where = str(settings.engine_args_path)
        try:
            self._start()
        except SettingsError:
            self._cleanup.close()
            raise
        except Exception as error:
            cause = self._errors.first() if self._errors else ""
            self._cleanup.close()
            logger.error(f"{settings.name}: the engine did not start\n{traceback.format_exc()}")
            cause = cause or f"{type(error).__name__}: {error}"
            raise SettingsError(f"{where}: the engine did not start: {cause}") from error

    def _start(self) -> None:
        timer = StartupTimer(self._settings.name)
        launch = Launch(
            self._settings,
            server_metrics=self._server.metrics,
            cleanup=self._cleanup,
            timer=timer,
        )
        self._settings = settings = launch.settings
        self._errors = launch.errors
        self._vllm = launch.vllm
        self._args = launch.args
        self.slot, self.label, self._balancer = launch.slot, launch.label, launch.balancer
        self.reports_metrics = launch.reports_metrics
        self.admission = Admission(
            -(-settings.serving.max_concurrent_requests // settings.placement.instances),
            settings.serving.max_queued_tokens,
            lambda: self._vllm.queued_tokens(self._llm),
        )
        self.answers = AnswerCheck()
        self._cleanup.callback(self.answers.stop)
        self.openai = openai_server(settings, self._args, self.slot, self, self.answers)
        self._cleanup.callback(self.openai.close)
        launch.resolve(timer)
        self._service = Service(launch, self.admission, self.openai, self.answers, self._cleanup)
        self.parser = self._parser(launch.config)
        self._bring_to_life(launch)
        timer.lap("engine started: weights, compilation, warm-up as vLLM's lines say")
        self._guard()
        timer.total("ready")

    def _bring_to_life(self, launch: Launch) -> None:
        """Start the event loop, and in it the engine and what watches it."""
        self._loop = EventLoopThread("engine")
        self._cleanup.callback(self._loop.stop)
        self._supervisor = Supervisor(
            launch,
            self._loop,
            self._settings.name,
            self._settings.serving.max_engine_restarts,
            begun=self._service.open,
            died=self.openai.engine_died,
            ending=self.openai.end_requests,
        )
        self._cleanup.callback(lambda: self._loop.call(self._supervisor.end()))
        if isinstance(self.slot, FrontEndSlot) and self.slot.is_leader:
            self._cleanup.callback(self.slot.announce_closing)
        self._loop.call(self._supervisor.begin())
        self._loop.spawn_background(
            self._balancer.heartbeat(lambda: self.is_up and self.admission.has_room_in_queue)
        )
        if self.reports_metrics:
            self._loop.spawn_background(self.lag.measure())
        if not self._args.disable_log_stats:
            self._loop.spawn_background(self._log_stats())

    def _guard(self) -> None:
        """Put in place what keeps requests from doing harm, and from being lost at the end."""
        self._drain = Drain(
            self.admission,
            self._loop,
            drain_timeout_seconds(self._settings, self._server),
            self.openai,
            self._settings.name,
        )
        watch = watch_server(
            self._settings,
            self._server,
            in_use=lambda: self._loop.has_requests,
            changed=self._on_readiness,
        )
        self._cleanup.callback(watch.stop)

    def _parser(self, config: Any) -> Parser:
        """Return the parser of a request's parameters, that of the model's kind."""
        from triton_vllm.vllm_api.pooling_parameters import PoolingParser
        from triton_vllm.vllm_api.sampling_parameters import SamplingParser

        if self._vllm.is_pooling(config):
            return PoolingParser()
        return SamplingParser(
            self._vllm.default_sampling_params(config),
            self._settings.serving.default_max_tokens,
            self._vllm.max_tokens_limit(config),
            self._settings.serving.max_n,
        )

    async def _log_stats(self) -> None:
        while True:
            await asyncio.sleep(_LOG_STATS_SECONDS)
            if self.is_up:
                await self._llm.do_log_stats()

    @property
    def _llm(self) -> vllm_api.AsyncLLM:
        return self._supervisor.life.llm

    @property
    def is_up(self) -> bool:
        """Whether the engine serves."""
        return self._supervisor.down is None

    @property
    def restarts(self) -> int:
        """How often the engine was restarted."""
        return self._supervisor.restarts

    @property
    def restarts_exhausted(self) -> bool:
        """Whether an engine that died is not started again."""
        return self._supervisor.restarts_exhausted

    def vllm_metrics(self) -> vllm_api.Metrics:
        """Return vLLM's own metrics, of all front ends."""
        metrics: vllm_api.Metrics = self._vllm.Metrics()
        return metrics

    def check(self) -> None:
        """Raise what would keep a request that came now from being served, if anything."""
        self.check_up()
        self.admission.check()

    def check_open(self) -> None:
        """Raise what keeps requests out for another reason than want of room."""
        self.check_up()
        self.admission.check_open()

    def check_up(self) -> None:
        """Raise EngineDownError, or why the engine is ended, unless it serves."""
        if self._supervisor.down is not None:
            raise self._supervisor.down

    @contextlib.contextmanager
    def admit(self) -> Iterator[Place]:
        """Hold the place of one request to its end; raise what keeps it out. Event loop only."""
        try:
            self.check_up()
            with self.admission.admit() as place:
                yield place
        finally:
            self._balancer.finished()

    def admit_http(self) -> contextlib.AbstractContextManager[Place]:
        """Count and admit a request that comes in the event loop, not through ``spawn``."""
        self._balancer.accepted_http()
        return self.admit()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start the coroutine of a request, which is to ``admit`` it, in the event loop."""
        self._balancer.accepted()
        self._loop.spawn(coroutine)

    def backpressure(self) -> None:
        """Leave the next request to another engine of the model that has less to do, if any."""
        self._balancer.backpressure()

    async def render(self, request: GenerationRequest) -> Generation:
        """Turn the prompt into token ids. Raises RequestError when it exceeds the context."""
        self.check_up()
        return await self._service.render(request)

    def cancel(self, task: asyncio.Task[Any]) -> bool:
        """Cancel a request's task, unless somebody else has. Event loop only."""
        return self._loop.cancel(task)

    def deadline(self, request: GenerationRequest, stream: ResponseStream) -> Deadline | NoDeadline:
        """Return the context in which the request has as much time as it may take."""
        options = request.options
        seconds = options.timeout_seconds or self._settings.serving.default_timeout_seconds
        if not seconds:
            return NoDeadline()
        if options.on_timeout == "error":
            return Deadline(seconds, self.cancel)

        def finish() -> None:
            stream.outcome = "timeout"
            self._loop.spawn_background(self._vllm.abort(self._llm, request.request_id))

        return Deadline(seconds, self.cancel, finish)

    def explain(self, error: BaseException, request_id: str) -> ServingError:
        """Say to the client what ended its request; to the log, what the operator should know."""
        if isinstance(error, asyncio.CancelledError):
            return (
                self._supervisor.down
                or self._drain.ended
                or CancelledError("cancelled by the client")
            )
        if isinstance(error, Exception):
            explained: ServingError = self._vllm.explain(error)
        else:  # a panic of Rust's, as in tokenizers, or a library that calls sys.exit
            explained = GenerationError(f"{type(error).__name__}: {one_line(error)}")
        if self._vllm.came_with_outputs(error):
            self._supervisor.notice()  # vLLM may have told this request of the engine's death
            if self._supervisor.down or isinstance(explained, EngineDownError):
                return self._supervisor.down or explained
        if isinstance(explained, GenerationError):
            logger.error(f"{request_id}: generation failed: {explained}")
        elif type(error) in (TypeError, ValueError):
            # Before vLLM had errors of its own for it, these meant a wrong request; they may also
            # mean a mistake of ours, so let the operator see them.
            logger.warning(f"{request_id}: refused: {type(error).__name__}: {one_line(error)}")
        return explained

    def _on_readiness(self, ready: bool) -> None:
        """Follow what the server says of this model. Any thread."""
        self._loop.call_soon(self._drain.take_back if ready else self._drain.begin)

    def shutdown(self) -> None:
        """End the engine, and what there may be of requests.

        Triton calls this only when every request has had its FINAL flag: its response objects keep
        the model alive. So there is nothing to wait for here but HTTP requests.
        """
        self._supervisor.close()
        self._loop.call(self.openai.drain())
        self._supervisor.refuse(UnavailableError("the model is being unloaded"))
        aborted = self._loop.call(self._loop.end_requests(timeout=1.0))
        if aborted:
            logger.warning(f"{self._settings.name}: {aborted} requests aborted by the unload")
        self._cleanup.close()
        # Else Python walks all that vLLM has imported once more before the process ends: seconds,
        # for which Triton waits, of one front end after the other.
        gc.freeze()

"""The engine: vLLM's AsyncLLM in an event loop of its own, from start to shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import traceback
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from triton_vllm.adapters import Adapters, NoAdapters
from triton_vllm.admission import Admission
from triton_vllm.chat_options import ChatOptions
from triton_vllm.cpus import parse_cpus
from triton_vllm.deadline import Deadline, NoDeadline
from triton_vllm.drain import Drain, drain_seconds, watch_server
from triton_vllm.engine_args import parse_engine_args
from triton_vllm.engine_life import EngineLife
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
from triton_vllm.front_end_metrics import LoopLag
from triton_vllm.generation import GenerationRequest
from triton_vllm.grammar_limit import limit_grammars
from triton_vllm.openai_server import openai_server
from triton_vllm.pooling import PoolingParser
from triton_vllm.process import FirstError
from triton_vllm.rendering import Renderers
from triton_vllm.restarts import Restarts
from triton_vllm.sampling import SamplingParser
from triton_vllm.server_options import ServerOptions
from triton_vllm.settings import ModelSettings, visible_devices
from triton_vllm.shared_engine import NoSeat, Seat, meeting_place
from triton_vllm.streaming import Log, ResponseStream
from triton_vllm.work import Work

if TYPE_CHECKING:
    from triton_vllm import vllm_api

_LOG_STATS_SECONDS = 10.0


class Engine:
    """One vLLM engine, seen from one front end.

    Coroutines run in the engine's event loop; the other methods may be called by any thread.
    ``seat`` is the place among the front ends, ``lag`` the event loop's, ``openai`` the HTTP
    server. A request is inside ``admission`` from its first step to its last.
    """

    def __init__(self, settings: ModelSettings, log: Log) -> None:
        """Import vLLM, load the model, warm it up: seconds to minutes.

        Raises SettingsError, one line with what the operator can mend, or what vLLM raised.
        """
        self._log = log
        self._settings = settings
        self._down: ServingError | None = None
        self._closing = False
        self._life: EngineLife | None = None
        self._life_changes = asyncio.Lock()
        self._server = ServerOptions.read()
        self._restarts = Restarts(settings.serving.engine_restarts)
        self._cleanup = contextlib.ExitStack()
        self.admission = Admission(
            -(-settings.serving.max_requests // settings.front_ends),
            settings.serving.max_queued_tokens,
            lambda: self._vllm.queued_tokens(self._living().llm),
        )
        self.lag = LoopLag()
        where = str(settings.engine_args_path)
        with FirstError() as first_error:
            try:
                self._set_up(where)
            except Exception as error:
                self._cleanup.close()
                if isinstance(error, SettingsError):
                    raise
                log.log_error(
                    f"{settings.name}: the engine did not start\n{traceback.format_exc()}"
                )
                raise SettingsError(
                    f"{where}: the engine did not start: {first_error.instead_of(error)}"
                ) from error

    def _set_up(self, where: str) -> None:
        begin = since = time.monotonic()
        if self._settings.serving.vllm_log_level:
            os.environ["VLLM_LOGGING_LEVEL"] = self._settings.serving.vllm_log_level
        if self._settings.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(
                self._settings.gpu, os.environ.get("CUDA_VISIBLE_DEVICES")
            )
        self._engine_cpus = parse_cpus(
            self._settings.serving.engine_cpus, f'{where}: "serving.engine_cpus"'
        )
        self.seat = self._take_seat()
        try:
            from triton_vllm import vllm_api
        except ImportError as error:
            raise unusable_vllm(error) from error
        self._vllm = vllm_api
        since = self._log_phase(f"vLLM {self._vllm.version()} imported", since)
        self._args = self._read_engine_args(where)
        self.openai = openai_server(
            self._settings, self._args, self.seat, self.check, self.admit, self._log
        )
        self._cleanup.callback(self.openai.close)
        try:
            self._config = self._vllm.create_config(self._args)
        except Exception as error:
            raise SettingsError(
                f'{where}: model "{self._args.model}": {one_line(error)}'
            ) from error
        self._chat = ChatOptions(self._settings.chat, self._args, where)
        self._adapters = self._read_adapters()
        self.parser = self._parser()
        since = self._log_phase(f"configuration of {self._args.model} resolved", since)
        self._loop = EventLoopThread("engine")
        self._cleanup.callback(self._loop.stop)
        self._cleanup.callback(lambda: self._loop.call(self._end_life()))
        if isinstance(self.seat, Seat) and self.seat.is_leader:
            self._cleanup.callback(self.seat.announce_closing)
        self._loop.call(self._begin_life())
        if self.reports_metrics:
            self._loop.spawn_background(self.lag.measure())
        if not self._args.disable_log_stats:
            self._loop.spawn_background(self._log_stats())
        self._guard()
        self._log_phase("engine started: weights, compilation, warm-up as vLLM's lines say", since)
        self._log_phase("ready", begin)

    def _guard(self) -> None:
        """Put in place what keeps requests from doing harm, and from being lost at the end."""
        self._grammars = limit_grammars(
            self._settings.serving.grammar_timeout_seconds,
            self._vllm.grammar_tokenizer(self._living().llm),
            self._log,
        )
        self._cleanup.callback(self._grammars.stop)
        self._drain = Drain(
            self.admission,
            self._loop,
            drain_seconds(self._settings, self._server),
            self._settings.name,
            self._log,
        )
        watch = watch_server(
            self._settings,
            self._server,
            is_up=lambda: self.is_up,
            in_use=lambda: self.admission.live > 0,
            changed=self._on_readiness,
            log=self._log,
        )
        self._cleanup.callback(watch.stop)

    def _take_seat(self) -> Seat | NoSeat:
        """Take a seat where several front ends share the engine."""
        settings = self._settings
        if settings.front_ends == 1:
            return NoSeat()
        seat = Seat.take(meeting_place(settings.name, settings.version), settings.front_ends)
        self._cleanup.callback(seat.leave)
        # As `vllm serve` with several API servers: the front ends count into files of one folder,
        # from which the leader reads the sum. prometheus_client looks at this when it is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(seat.metrics_directory)
        return seat

    def _read_engine_args(self, where: str) -> vllm_api.AsyncEngineArgs:
        """Parse the engine arguments, as they concern this front end."""
        settings = self._settings
        args = parse_engine_args(settings.engine_args, where, self._log.log_warn)
        self.reports_metrics = (
            settings.report_metrics and not args.disable_log_stats and self._server.metrics
        )
        if args.trust_remote_code:
            self._log.log_warn(
                f'{where}: "trust_remote_code" runs code that comes with the model, with all '
                "rights of the server"
            )
        if settings.front_ends == 1:
            return args
        if getattr(args, "mm_tensor_ipc", None) == "torch_shm":
            raise SettingsError(
                f'{where}: "mm_tensor_ipc": "torch_shm" needs one front end, and config.pbtxt has '
                f"instance_group count {settings.front_ends}"
            )
        # vLLM logs no statistics when several front ends share an engine, as none of them sees the
        # whole; so do not pay for collecting them, unless they are exported.
        args.disable_log_stats = not self.reports_metrics
        return self._vllm.as_front_end(args, self.seat.index, self.seat.count)

    def _read_adapters(self) -> Adapters | NoAdapters:
        settings = self._settings
        if not self._args.enable_lora:
            return NoAdapters()
        return Adapters.of_model(settings.directory, settings.version, self._log)

    def _parser(self) -> SamplingParser | PoolingParser:
        """Return the parser of a request's parameters, that of the model's kind."""
        if self._vllm.is_pooling(self._config):
            return PoolingParser()
        return SamplingParser(
            self._vllm.default_sampling_params(self._config),
            self._settings.serving.default_max_tokens,
            self._vllm.max_tokens_limit(self._config),
        )

    async def _begin_life(self) -> None:
        """Start the engine, or join the one that another front end starts; open the HTTP port."""
        async with self._life_changes:
            died = self._life.addresses if self._life else None
            life = EngineLife(self._vllm, self._loop, self.seat)
            config = self._config or self._vllm.create_config(self._args)
            self._config = None  # the next life needs one of its own
            await life.begin(self._args, config, self._engine_cpus, self._on_death, died)
            self._life = life
            self._renderers = Renderers(self._vllm, life.llm, self._adapters)
            await self._renderers.prepare(self._chat)
            await self.openai.serve(life.llm)
        if self.seat.count > 1:
            front_end = f"front end {self.seat.index + 1} of {self.seat.count}"
            self._log.log_info(f"{self._settings.name}: {front_end} joins the engine")

    async def _end_life(self) -> None:
        async with self._life_changes:
            await self.openai.end_requests()
            if self._life is not None:
                self._life.end()

    def _on_death(self, life: EngineLife, pid: int) -> None:
        """End all requests, and restart: a process of the engine has exited. Event loop only."""
        if self._down is not None or life is not self._life or self.seat.is_closing:
            return
        self._down = EngineDownError(f"the engine died (process {pid})")
        self._log.log_error(f"{self._settings.name}: {self._down}")
        if not self._restarts.may_try() or not self.seat.leader_lives():
            self._loop.cancel_requests()
        else:
            self._down = EngineDownError(f"{self._down} and is being restarted")
            self._loop.spawn_background(self._restart())

    async def _restart(self) -> None:
        """Bring the engine back, with growing patience, as often as the operator allows."""
        await self._loop.end_requests(timeout=1.0)
        error: Exception = EngineDownError("not tried")
        while self._restarts.may_try() and self.seat.leader_lives() and not self._closing:
            seconds = self._restarts.start_try()
            self._log.log_warn(
                f"{self._settings.name}: restarting the engine in {seconds:.0f} s, try "
                f"{self._restarts.tries} of {self._restarts.limit}"
            )
            await asyncio.sleep(seconds)
            if self._closing:
                return
            try:
                await self._end_life()
                since = time.monotonic()
                await self._begin_life()
            except Exception as failed:
                error = failed
                self._log.log_error(f"{self._settings.name}: no restart: {one_line(failed)}")
            else:
                self._restarts.succeeded()
                self._down = None
                self._log_phase("engine restarted", since)
                return
        if self.seat.is_leader and not self._closing:
            self.seat.announce_closing()  # so that the others stop waiting
        self._down = EngineDownError(
            f"the engine died and could not be restarted: {one_line(error)}"
        )

    async def _log_stats(self) -> None:
        while True:
            await asyncio.sleep(_LOG_STATS_SECONDS)
            if self.is_up and self._life is not None:
                await self._life.llm.do_log_stats()

    @property
    def is_up(self) -> bool:
        """Whether the engine serves."""
        return self._down is None

    @property
    def restarts(self) -> int:
        """How often the engine was restarted."""
        return self._restarts.done

    def check(self) -> None:
        """Raise what would keep a request that came now from being served, if anything."""
        self._check_up()
        self.admission.check()

    def _check_up(self) -> None:
        if self._down is not None:
            raise self._down

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Hold the place of one request to its end; raise what keeps it out. Event loop only."""
        self._check_up()
        with self.admission.admit():
            yield

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
            stream.outcome = "deadline"
            self._loop.spawn_background(self._vllm.abort(self._living().llm, request.request_id))

        return Deadline(seconds, self.cancel, finish)

    def _on_readiness(self, ready: bool) -> None:
        """Follow what the server says of this model. Any thread."""
        self._loop.call_soon(self._drain.take_back if ready else self._drain.begin)

    def vllm_metrics(self) -> vllm_api.Metrics:
        """Return vLLM's own metrics, of all front ends."""
        return self._vllm.Metrics()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a request's coroutine in the engine's event loop."""
        self._loop.spawn(coroutine)

    async def render(self, request: GenerationRequest) -> Work:
        """Turn the prompt into token ids. Raises RequestError when it exceeds the context."""
        self._check_up()
        work = await self._renderers.render(request)
        if work.structured_outputs is not None:
            await self._grammars.check(work.structured_outputs)
        return work

    def _living(self) -> EngineLife:
        assert self._life is not None, "as __init__ has begun one"
        return self._life

    def explain(self, error: BaseException, request_id: str) -> ServingError:
        """Say to the client what ended its request; to the log, what the operator should know."""
        if isinstance(error, asyncio.CancelledError):
            return self._down or self._drain.ended or CancelledError("cancelled by the client")
        assert isinstance(error, Exception), "whatever else there is ends the process"
        explained = self._vllm.explain(error)
        if isinstance(explained, GenerationError):
            self._log.log_error(f"{request_id}: generation failed: {explained}")
        elif type(error) in (TypeError, ValueError):
            # Before vLLM had errors of its own for it, these meant a wrong request; they may also
            # mean a mistake of ours, so let the operator see them.
            self._log.log_warn(f"{request_id}: refused: {type(error).__name__}: {one_line(error)}")
        return explained

    def shutdown(self) -> None:
        """End the engine, and what there may be of requests.

        Triton calls this only when every request has had its FINAL flag: its response objects keep
        the model alive. So there is nothing to wait for here but HTTP requests.
        """
        self._closing = True
        self._loop.call(self.openai.drain())
        self._down = self._down or UnavailableError("the model is being unloaded")
        aborted = self._loop.call(self._loop.end_requests(timeout=1.0))
        if aborted:
            self._log.log_warn(f"{self._settings.name}: {aborted} requests aborted by the unload")
        self._cleanup.close()

    def _log_phase(self, what: str, since: float) -> float:
        now = time.monotonic()
        self._log.log_info(f"{self._settings.name}: {what} ({now - since:.1f} s)")
        return now


def unusable_vllm(error: ImportError) -> SettingsError:
    """Say what ``import vllm`` found, when it is not a vLLM that we know how to use."""
    import vllm

    found = getattr(vllm, "__version__", None)
    what = f"vLLM {found}" if found else f"{list(vllm.__path__)}, which is not vLLM"
    return SettingsError(
        f"import vllm found {what}; needed is vLLM 0.26 to 0.32 in the execution environment "
        f"({one_line(error)})"
    )

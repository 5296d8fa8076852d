"""The engine: vLLM's AsyncLLM in an event loop of its own, from start to shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
import traceback
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any

from triton_vllm.cpus import engine_on, parse_cpus
from triton_vllm.engine_args import parse_engine_args
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
from triton_vllm.front_end_metrics import LoopLag, server_reports_metrics
from triton_vllm.generation import Delta, GenerationRequest
from triton_vllm.sampling import SamplingParser
from triton_vllm.settings import ModelSettings
from triton_vllm.shared_engine import NoSeat, Seat, meeting_place
from triton_vllm.streaming import Log

if TYPE_CHECKING:
    from triton_vllm import vllm_api

_SHUTDOWN_SECONDS = 10.0  # a worker on a CPU takes 4 to leave, and the engine core waits for it
_LOG_STATS_SECONDS = 10.0


class Engine:
    """One vLLM engine, seen from one front end.

    Coroutines run in the engine's event loop; the other methods may be called by any thread.
    ``seat`` is the place among the front ends, ``lag`` the event loop's.
    """

    def __init__(self, settings: ModelSettings, log: Log) -> None:
        """Import vLLM, load the model, warm it up: seconds to minutes.

        Raises SettingsError, one line with what the operator can mend, or what vLLM raised.
        """
        self._log = log
        self._settings = settings
        self._stop_reason: ServingError | None = None
        self._cleanup = contextlib.ExitStack()
        self.lag = LoopLag()
        where = str(settings.engine_args_path)
        try:
            self._set_up(where)
        except Exception as error:
            self._cleanup.close()
            if isinstance(error, SettingsError):
                raise
            log.log_error(f"{settings.name}: the engine did not start\n{traceback.format_exc()}")
            raise SettingsError(
                f"{where}: the engine did not start: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _set_up(self, where: str) -> None:
        begin = since = time.monotonic()
        if self._settings.serving.vllm_log_level:
            os.environ["VLLM_LOGGING_LEVEL"] = self._settings.serving.vllm_log_level
        engine_cpus = parse_cpus(
            self._settings.serving.engine_cpus, f'{where}: "serving.engine_cpus"'
        )
        self.seat = self._take_seat()
        try:
            from triton_vllm import vllm_api
        except ImportError as error:
            raise unusable_vllm(error) from error
        self._vllm = vllm_api
        since = self._log_phase(f"vLLM {self._vllm.version()} imported", since)
        args = self._read_engine_args(where)
        try:
            config = self._vllm.create_config(args)
        except Exception as error:
            raise SettingsError(f'{where}: model "{args.model}": {one_line(error)}') from error
        self.sampling = SamplingParser(
            self._vllm.default_sampling_params(config), self._settings.serving.default_max_tokens
        )
        since = self._log_phase(f"configuration of {args.model} resolved", since)
        self._loop = EventLoopThread("engine")
        self._cleanup.callback(self._loop.stop)
        self._loop.call(self._start(args, config, engine_cpus))
        self._log_phase("engine started: weights, compilation, warm-up as vLLM's lines say", since)
        self._log_phase("ready", begin)

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
            settings.report_metrics and not args.disable_log_stats and server_reports_metrics()
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

    async def _start(
        self, args: vllm_api.AsyncEngineArgs, config: Any, engine_cpus: frozenset[int]
    ) -> None:
        """Start the engine, or join the one that another front end has started."""
        with engine_on(engine_cpus):
            front_end = self._join(self.seat, args) if isinstance(self.seat, Seat) else {}
            self._llm = self._vllm.create_engine(args, config, **front_end)
        self._cleanup.callback(lambda: self._loop.call(self._stop_front_end()))
        if self.reports_metrics:
            self._loop.spawn_background(self.lag.measure())
        if not args.disable_log_stats:
            self._loop.spawn_background(self._log_stats())
        # What lives now lives for ever: keep the collector from walking it during decoding.
        gc.collect()
        gc.freeze()

    def _join(self, seat: Seat, args: vllm_api.AsyncEngineArgs) -> dict[str, Any]:
        """Launch the shared engine if this front end leads; return where it is for vLLM."""
        if seat.is_leader:
            cores = self._vllm.EngineCores(args, seat.count)
            self._cleanup.callback(cores.shutdown, timeout=_SHUTDOWN_SECONDS)
            self._cleanup.callback(seat.announce_closing)
            seat.publish(cores.addresses)
        addresses = seat.wait_for_engine()
        watched = set(addresses.processes)
        if not seat.is_leader:
            watched.add(seat.leader_pid())
        for pid in watched:
            self._loop.on_exit(pid, lambda pid: self._on_death(pid, seat))
        self._log.log_info(
            f"{self._settings.name}: front end {seat.index + 1} of {seat.count} joins the engine"
        )
        return {
            "client_addresses": {
                "input_address": addresses.inputs[seat.index],
                "output_address": addresses.outputs[seat.index],
                "stats_update_address": addresses.stats_update,
            },
            "client_count": seat.count,
            "client_index": seat.index,
        }

    def _on_death(self, pid: int, seat: Seat) -> None:
        """End all requests: a process of the shared engine has exited. Event loop only."""
        if self._stop_reason is not None or seat.is_closing:
            return
        self._stop_reason = EngineDownError(f"the engine died (process {pid})")
        self._log.log_error(f"{self._settings.name}: {self._stop_reason}")
        self._loop.cancel_requests()

    async def _log_stats(self) -> None:
        while True:
            await asyncio.sleep(_LOG_STATS_SECONDS)
            await self._llm.do_log_stats()

    @property
    def is_up(self) -> bool:
        """Whether the engine serves."""
        return self._stop_reason is None

    def vllm_metrics(self) -> vllm_api.Metrics:
        """Return vLLM's own metrics, of all front ends."""
        return self._vllm.Metrics()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a request's coroutine in the engine's event loop."""
        self._loop.spawn(coroutine)

    async def tokenize(self, request: GenerationRequest) -> Any:
        """Turn the prompt into token ids. Raises RequestError when it exceeds the context."""
        if self._stop_reason is not None:
            raise self._stop_reason
        return await self._vllm.tokenize(self._llm, request.prompt)

    def generate(
        self, prompt: Any, request: GenerationRequest
    ) -> AsyncGenerator[vllm_api.RequestOutput, None]:
        """Add the request to the running batch; yield its outputs until one is ``finished``."""
        return self._vllm.generate(
            self._llm,
            prompt,
            request.sampling_params,
            request.request_id,
            request.trace_headers,
        )

    def explain(self, error: BaseException, request_id: str) -> ServingError:
        """Say to the client what ended its request; to the log, what the operator should know."""
        if isinstance(error, asyncio.CancelledError):
            return self._stop_reason or CancelledError("cancelled by the client")
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
        the model alive. So there is nothing to wait for here.
        """
        self._stop_reason = self._stop_reason or UnavailableError("the model is being unloaded")
        aborted = self._loop.call(self._loop.end_requests(timeout=1.0))
        if aborted:
            self._log.log_warn(f"{self._settings.name}: {aborted} requests aborted by the unload")
        self._cleanup.close()
        gc.unfreeze()
        gc.collect()

    async def _stop_front_end(self) -> None:
        """End vLLM's front end, in the loop: so its output task is cancelled before it can fail."""
        self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)
        # While Python still stands: vLLM's own __del__ fails when the interpreter is going down.
        del self._llm

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


def delta_of(output: vllm_api.RequestOutput, num_sequences: int) -> Delta:
    """Return vLLM's output as a delta, each text at its sequence's index.

    An output of a stream with ``n`` > 1 holds only the sequences that have something new.
    """
    if num_sequences == 1:
        completion = output.outputs[0]
        return Delta((completion.text,), (len(completion.token_ids),), output.finished)
    texts = [""] * num_sequences
    token_counts = [0] * num_sequences
    for completion in output.outputs:
        texts[completion.index] += completion.text
        token_counts[completion.index] += len(completion.token_ids)
    return Delta(tuple(texts), tuple(token_counts), output.finished)

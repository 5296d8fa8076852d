"""The engine: vLLM's AsyncLLM in an event loop of its own, from start to shutdown."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any

from triton_vllm.engine_args import parse_engine_args
from triton_vllm.errors import (
    CancelledError,
    GenerationError,
    ServingError,
    SettingsError,
    UnavailableError,
    one_line,
)
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.generation import Delta, GenerationRequest
from triton_vllm.sampling import SamplingParser
from triton_vllm.settings import ModelSettings
from triton_vllm.shared_engine import Seat, meeting_place
from triton_vllm.streaming import Log

if TYPE_CHECKING:
    from triton_vllm import vllm_api

_SHUTDOWN_SECONDS = 10.0  # a worker on a CPU takes 4 to leave, and the engine core waits for it
_LOG_STATS_SECONDS = 10.0


class Engine:
    """One vLLM engine, seen from one front end.

    Coroutines run in the engine's event loop; the other methods may be called by any thread.
    """

    def __init__(self, settings: ModelSettings, log: Log) -> None:
        """Import vLLM, load the model, warm it up: seconds to minutes.

        Raises SettingsError, one line with what the operator can mend, or what vLLM raised.
        """
        self._log = log
        self._settings = settings
        self._stop_reason: ServingError | None = None
        self._seat: Seat | None = None
        self._cores: vllm_api.EngineCores | None = None
        since = time.monotonic()
        from triton_vllm import vllm_api

        self._vllm = vllm_api
        since = self._log_phase(f"vLLM {vllm_api.version()} imported", since)
        where = str(settings.engine_args_path)
        args, config = self._configure(where)
        since = self._log_phase(f"configuration of {args.model} resolved", since)
        self._loop = EventLoopThread("engine")
        try:
            self._llm = self._loop.call(self._start(args, config))
        except Exception as error:
            self._leave()
            self._loop.stop()
            if isinstance(error, SettingsError):
                raise
            log.log_error(f"{settings.name}: the engine did not start\n{traceback.format_exc()}")
            raise SettingsError(
                f"{where}: the engine did not start: {type(error).__name__}: {one_line(error)}"
            ) from error
        self._log_phase("engine started", since)

    def _configure(self, where: str) -> tuple[vllm_api.AsyncEngineArgs, Any]:
        """Resolve the engine arguments; take a seat where several front ends share the engine."""
        settings = self._settings
        args = parse_engine_args(settings.engine_args, where, self._log.log_warn)
        if settings.front_ends > 1:
            place = meeting_place(settings.name, settings.version)
            self._seat = Seat.take(place, settings.front_ends)
            args = self._vllm.as_front_end(args, self._seat.index, self._seat.count)
            # vLLM logs no statistics when several front ends share an engine, as none of them
            # sees the whole; then do not pay for collecting them.
            args.disable_log_stats = True
        try:
            config = self._vllm.create_config(args)
        except Exception as error:
            self._leave()
            raise SettingsError(f'{where}: model "{args.model}": {one_line(error)}') from error
        self.sampling = SamplingParser(
            self._vllm.default_sampling_params(config), settings.serving.default_max_tokens
        )
        return args, config

    async def _start(self, args: vllm_api.AsyncEngineArgs, config: Any) -> vllm_api.AsyncLLM:
        """Start the engine, or join the one that another front end has started."""
        front_end = {} if self._seat is None else self._join(self._seat, args)
        llm = self._vllm.create_engine(args, config, **front_end)
        if not args.disable_log_stats:
            self._loop.spawn_background(self._log_stats(llm))
        # What lives now lives for ever: keep the collector from walking it during decoding.
        gc.collect()
        gc.freeze()
        return llm

    def _join(self, seat: Seat, args: vllm_api.AsyncEngineArgs) -> dict[str, Any]:
        if seat.is_leader:
            self._cores = self._vllm.EngineCores(args, seat.count)
            seat.publish(self._cores.addresses)
        addresses = seat.wait_for_engine()
        watched = addresses.processes if seat.is_leader else [seat.leader_pid()]
        for pid in {*watched, *addresses.processes}:
            self._loop.on_exit(pid, self._on_death)
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

    def _on_death(self, pid: int) -> None:
        """End all requests: a process of the shared engine has exited. Event loop only."""
        if self._stop_reason is not None or (self._seat is not None and self._seat.is_closing):
            return
        self._stop_reason = UnavailableError(f"the engine died (process {pid})")
        self._log.log_error(f"{self._settings.name}: {self._stop_reason}")
        self._loop.cancel_requests()

    async def _log_stats(self, llm: vllm_api.AsyncLLM) -> None:
        while True:
            await asyncio.sleep(_LOG_STATS_SECONDS)
            await llm.do_log_stats()

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
        return self._vllm.generate(self._llm, prompt, request.sampling_params, request.request_id)

    def explain(self, error: BaseException) -> ServingError:
        """Say to the client what ended its request."""
        if isinstance(error, asyncio.CancelledError):
            return self._stop_reason or CancelledError("cancelled by the client")
        assert isinstance(error, Exception), "whatever else there is ends the process"
        explained = self._vllm.explain(error)
        if isinstance(explained, GenerationError):
            self._log.log_error(f"generation failed: {explained}")
        return explained

    def shutdown(self) -> None:
        """Let running requests finish, within the drain deadline; then end the engine."""
        self._stop_reason = self._stop_reason or UnavailableError("the model is being unloaded")
        aborted = self._loop.call(self._loop.drain(self._settings.serving.drain_seconds))
        if aborted:
            self._log.log_warn(f"{aborted} requests aborted: not done within the drain deadline")
        if self._seat is not None and self._seat.is_leader:
            self._seat.announce_closing()
        self._loop.call(self._stop())
        self._leave()
        self._loop.stop()
        # While Python still stands: vLLM's own __del__ fails when the interpreter is going down.
        del self._llm
        gc.unfreeze()
        gc.collect()

    async def _stop(self) -> None:
        """End vLLM's front end, in the loop: so its output task is cancelled before it can fail."""
        self._llm.shutdown(timeout=_SHUTDOWN_SECONDS)

    def _leave(self) -> None:
        if self._cores is not None:
            self._cores.shutdown(timeout=_SHUTDOWN_SECONDS)
        if self._seat is not None:
            self._seat.leave()

    def _log_phase(self, what: str, since: float) -> float:
        now = time.monotonic()
        self._log.log_info(f"{self._settings.name}: {what} ({now - since:.1f} s)")
        return now


def delta_of(output: vllm_api.RequestOutput, num_sequences: int) -> Delta:
    """Return vLLM's output as a delta, each text at its sequence's index.

    An output of a stream with ``n`` > 1 holds only the sequences that have something new.
    """
    if num_sequences == 1:
        completion = output.outputs[0]
        return Delta((completion.text,), len(completion.token_ids), output.finished)
    texts = [""] * num_sequences
    for completion in output.outputs:
        texts[completion.index] += completion.text
    tokens = sum(len(completion.token_ids) for completion in output.outputs)
    return Delta(tuple(texts), tokens, output.finished)

"""OpenAI-compatible HTTP: vLLM's own app on a port of its own, in the engine's event loop.

    uvicorn (one a front end) ── Gate ── vLLM's app ── the AsyncLLM that lives

The port is taken before the model is loaded and opened when it is; it stays open while a dead
engine is restarted, and is given back when the model has been unloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.counters import Traffic
from triton_vllm.errors import ServingError, SettingsError, UnavailableError, one_line
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.openai_api.answer_log import AnswerLog
from triton_vllm.openai_api.arguments import parse_frontend_args
from triton_vllm.openai_api.middleware import Door, Gate
from triton_vllm.openai_api.port import Port
from triton_vllm.topology.draining import draining
from triton_vllm.topology.front_ends import FrontEndSlot, SingleFrontEnd

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from triton_vllm.vllm_api import api as vllm_api

_END_SECONDS = 1.0  # for requests that are being cancelled


class NoOpenAIServer:
    """No port is opened."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    def begin_drain(self, why: UnavailableError) -> None:
        """Do nothing."""

    def take_back(self) -> None:
        """Do nothing."""

    async def serve(self, llm: vllm_api.AsyncLLM) -> None:
        """Do nothing."""

    def engine_died(self, why: ServingError) -> None:
        """Do nothing."""

    async def end_requests(self) -> None:
        """Do nothing."""

    async def drain(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def openai_server(
    settings: ModelSettings,
    engine_args: vllm_api.AsyncEngineArgs,
    slot: FrontEndSlot | SingleFrontEnd,
    door: Door,
    answers: AnswerCheck,
) -> OpenAIServer | NoOpenAIServer:
    """Return the server that the settings ask for, its port taken, where this front end leads.

    Raises SettingsError, one line.
    """
    openai = settings.serving.openai
    if openai is None:
        return NoOpenAIServer()
    where = f'{settings.engine_args_path}: "serving.openai"'
    try:
        from triton_vllm.vllm_api import (
            openai_app as vllm_openai,  # noqa: F401 (only whether it can be imported)
        )
    except ImportError as error:
        raise moved(where, error) from error
    # What the model's own chat does, the port does too, unless it says otherwise.
    given = {**settings.chat, **openai.frontend}
    args = parse_frontend_args(given, engine_args, settings.engine_args["model"], where)
    if openai.served_model_name:
        args.served_model_name = list(openai.served_model_name)
    keys = openai.read_api_keys(where)
    args.host, args.port, args.api_key = openai.host, openai.port, list(keys) or None
    if not keys and openai.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(f"{where}: {openai.host} can be reached from other machines, without a key")
    gate = Gate(door, keys, settings.serving.default_timeout_seconds)
    return OpenAIServer(settings, args, engine_args, slot, gate, answers)


def moved(where: str, error: ImportError) -> SettingsError:
    """Say which vLLM has its OpenAI-compatible front end where we do not find it."""
    from triton_vllm.vllm_api import api as vllm_api

    return SettingsError(
        f"{where}: vLLM {vllm_api.version()} has its OpenAI-compatible front end elsewhere than "
        f"vLLM 0.26 to 0.33 ({one_line(error)}); without this object the model serves Triton's "
        "protocols as ever"
    )


class OpenAIServer:
    """One front end's HTTP server. Its methods belong to the engine's event loop."""

    def __init__(
        self,
        settings: ModelSettings,
        args: Any,
        engine_args: vllm_api.AsyncEngineArgs,
        slot: FrontEndSlot | SingleFrontEnd,
        gate: Gate,
        answers: AnswerCheck,
    ) -> None:
        """``args`` are those of vLLM's front end. Raises SettingsError: port or TLS files."""
        import uvicorn

        from triton_vllm.vllm_api import api as vllm_api
        from triton_vllm.vllm_api import openai_app as vllm_openai

        assert settings.serving.openai, "as openai_server has seen"
        self.traffic = gate.traffic
        self._name = settings.name
        self._settings = settings.serving.openai
        self._drain_seconds = ServerOptions.read().drain_timeout_seconds(
            self._settings.drain_timeout_seconds, settings.placement.instances
        )
        self._vllm_version = vllm_api.version()
        self._args = args
        self._slot = slot
        self._gate = gate
        self._answers = answers
        self._where = f'{settings.engine_args_path}: "serving.openai"'
        self._front_end = vllm_openai.FrontEnd(args, engine_args)
        self._watch_certificates = vllm_openai.watch_certificates
        self._draining = draining(slot)
        self._drained_at: float | None = None  # in the loop's time
        self._end_timer: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._cleanup = contextlib.ExitStack()
        config = uvicorn.Config(
            gate,
            lifespan="off",  # the app comes and goes with the engine
            **vllm_openai.uvicorn_options(args),
        )
        try:
            config.load()
        except (OSError, ValueError, AssertionError) as error:
            raise SettingsError(
                f'{self._where}: "ssl_certfile" ({args.ssl_certfile}), "ssl_keyfile" '
                f"({args.ssl_keyfile}): {one_line(error)}"
            ) from error
        self._server = uvicorn.Server(config)
        self._port = self._take_port() if slot.is_leader else None

    def _take_port(self) -> Port:
        port = Port(
            self._settings.host,
            self._settings.port,
            leads=self._slot.is_leader,
            shared=self._slot.count > 1,
            where=self._where,
        )
        self._cleanup.callback(port.close)
        return port

    async def serve(self, llm: vllm_api.AsyncLLM) -> None:
        """Serve ``llm``: open the port, or, where it is open, put ``llm`` in the old one's place.

        Raises SettingsError when vLLM's app cannot be built, or the port not be opened.
        """
        if self._server.should_exit:  # the model is unloaded while its engine is restarted
            return
        try:
            await self._front_end.attach(llm)
        except Exception as error:
            raise SettingsError(
                f"{self._where}: the app of vLLM {self._vllm_version} cannot be built: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
        self._gate.app = AnswerLog(self._front_end.app, self._answers)
        if self._serving is None:
            await self._open()

    async def _open(self) -> None:
        port = self._port or self._take_port()
        self._serving = asyncio.create_task(self._server.serve([port.socket]))
        while not self._server.started:
            await asyncio.wait([self._serving], timeout=0.01)
            if self._serving.done():
                error = self._serving.exception()
                raise SettingsError(f"{self._where}: port {self._settings.port}: {error}")
        config = self._server.config
        self._certificates = self._watch_certificates(self._args, config.ssl)
        if not self._slot.is_leader:
            self._background.add(asyncio.create_task(self._drain_with_leader()))
        logger.info(
            f"{self._name}: OpenAI-compatible HTTP on {'https' if config.is_ssl else 'http'}://"
            f"{self._settings.host}:{self._settings.port}/v1"
        )

    async def _drain_with_leader(self) -> None:
        await self._draining.wait_for_leader()
        await self.drain()

    def begin_drain(self, why: UnavailableError) -> None:
        """End what is under way ``drain_timeout_seconds`` after the first call of this."""
        if self._drained_at is None:
            loop = asyncio.get_running_loop()
            self._drained_at = loop.time() + self._drain_seconds
            self._end_timer = loop.call_at(self._drained_at, self._end_all, why)

    def take_back(self) -> None:
        """Let what is under way run on, unless it is the model's end that has begun."""
        if self._server.should_exit:  # the server may be ready with another one in our place
            return
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._drained_at = None

    def _end_all(self, why: UnavailableError) -> None:
        ended = self._gate.end_all(
            UnavailableError(f"{why}, and {self._drain_seconds:g} s of grace are over")
        )
        if ended:
            logger.warning(f"{self._name}: {ended} OpenAI requests aborted: {why}")

    def engine_died(self, why: ServingError) -> None:
        """Answer what is under way: no engine will."""
        self._gate.end_all(why)

    async def end_requests(self) -> None:
        """End what the engine that is going away has not answered."""
        if requests := set(self._server.server_state.tasks):
            for request in requests:
                request.cancel()
            await asyncio.wait(requests, timeout=_END_SECONDS)

    async def drain(self) -> None:
        """Free the port; give requests under way what is left of their time, then end them."""
        self._server.should_exit = True
        self._draining.announce()
        self.begin_drain(UnavailableError("the model is being unloaded"))
        if self._serving is not None:
            # uvicorn is not to wait for clients that do not read how their requests were ended.
            self._server.config.timeout_graceful_shutdown = self._time_left()
            await asyncio.wait([self._serving])
        self._draining.finish()
        await self._draining.wait_for_others(self._time_left())
        await self.end_requests()
        await self._front_end.close()

    def _time_left(self) -> float:
        """Return how long to wait until all requests must have ended."""
        assert self._drained_at is not None, "as drain() has begun"
        return max(0.0, self._drained_at - asyncio.get_running_loop().time()) + _END_SECONDS

    def close(self) -> None:
        """Free the port, whatever state the server is in."""
        self._cleanup.close()

"""OpenAI-compatible HTTP: vLLM's own app on a second port, in the engine's event loop.

    uvicorn (one per front end) ── RequestMiddleware ── vLLM's app ── the running AsyncLLM

The port is bound before the model is loaded and opened when it is; it stays open while a dead
engine is restarted, and is closed when the model is unloaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triton_vllm.config.openai import OpenAISettings
from triton_vllm.config.settings import ModelSettings
from triton_vllm.counters import Traffic
from triton_vllm.errors import SettingsError, one_line
from triton_vllm.limits.admission import OPENAI, Admission
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api.answer_log import AnswerLog
from triton_vllm.openai_api.arguments import parse_frontend_args
from triton_vllm.openai_api.error_texts import ErrorTexts
from triton_vllm.openai_api.middleware import RequestMiddleware
from triton_vllm.openai_api.port import bound_port
from triton_vllm.topology.front_ends import EngineAddresses, FrontEndSlot
from triton_vllm.vllm_api.versions import SUPPORTED

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from triton_vllm.vllm_api import api as vllm_api
    from triton_vllm.vllm_api import openai_app as vllm_openai

_END_SECONDS = 1.0  # for requests that are being cancelled


class NoOpenAIServer:
    """The server of a model without an OpenAI port."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    async def serve(self, llm: vllm_api.AsyncLLM, addresses: EngineAddresses | None) -> None:
        """Serve ``llm``: open the port, or, if it is open, replace the engine behind it.

        ``addresses`` are those of an engine with several clients. Raises SettingsError when vLLM's
        app cannot be built, or the port not be opened.
        """

    def suspend(self) -> None:
        """Let go of an engine that has died."""

    async def shut_down(self) -> None:
        """Close the port; give live requests what is left of their time, then end them."""


def openai_server(
    settings: ModelSettings,
    engine_args: vllm_api.AsyncEngineArgs,
    slot: FrontEndSlot,
    admission: Admission,
    drain: Drain,
    answers: AnswerCheck,
    port: socket.socket | None,
) -> NoOpenAIServer:
    """Return the server that the settings ask for; ``port`` is bound if this front end leads.

    Raises SettingsError, one line.
    """
    openai = settings.serving.openai
    if openai is None:
        return NoOpenAIServer()
    where = f'{settings.engine_args_path}: "serving.openai"'
    try:
        from triton_vllm.vllm_api import openai_app as vllm_openai
    except ImportError as error:
        raise moved(where, error) from error
    if openai.server == "rust":
        from triton_vllm.openai_api.rust_settings import rust_server

        if port is None:  # another front end leads
            return NoOpenAIServer()
        return rust_server(settings, openai, engine_args, admission, drain, port, where)
    # What the model's own chat does, the port does too, unless it says otherwise.
    given = {**settings.chat, **openai.frontend}
    args = parse_frontend_args(given, engine_args, settings.engine_args["model"], where)
    if openai.served_model_name:
        args.served_model_name = list(openai.served_model_name)
    keys = openai.read_api_keys(where)
    # The middleware checks the key. An empty one, unlike none, keeps vLLM from its own check with
    # VLLM_API_KEY.
    args.host, args.port, args.api_key = openai.host, openai.port, [""]
    warn_if_open(openai, keys, where)
    middleware = RequestMiddleware(
        admission,
        keys,
        settings.serving.default_timeout_seconds,
        args.root_path or "",
        lambda app: vllm_openai.with_cors(app, args),
    )
    front_end = vllm_openai.FrontEnd(args, engine_args, settings.serving.default_max_tokens)
    server = _uvicorn_server(middleware, args, where)
    return OpenAIServer(
        settings.name, openai, where, middleware, front_end, server, slot, drain, answers, port
    )


def warn_if_open(openai: OpenAISettings, keys: tuple[str, ...], where: str) -> None:
    """Warn of a port that other machines reach, and that has no key."""
    if not keys and openai.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(f"{where}: {openai.host} can be reached from other machines, without a key")


def moved(where: str, error: ImportError) -> SettingsError:
    """Return the error for a vLLM whose OpenAI-compatible front end is not where it is known."""
    from triton_vllm.vllm_api import api as vllm_api

    return SettingsError(
        f"{where}: vLLM {vllm_api.version()} has its OpenAI-compatible front end elsewhere than "
        f"vLLM {SUPPORTED} ({one_line(error)}); without this object the model serves Triton's "
        "protocols as ever"
    )


def _uvicorn_server(middleware: RequestMiddleware, args: Any, where: str) -> Any:
    """Return uvicorn's server, with its TLS files read. Raises SettingsError."""
    import uvicorn

    from triton_vllm.vllm_api import openai_app as vllm_openai

    # Without a lifespan: the app comes and goes with the engine.
    config = uvicorn.Config(middleware, lifespan="off", **vllm_openai.uvicorn_options(args))
    try:
        config.load()
    except (OSError, ValueError, AssertionError) as error:
        raise SettingsError(
            f'{where}: "ssl_certfile" ({args.ssl_certfile}), "ssl_keyfile" '
            f"({args.ssl_keyfile}): {one_line(error)}"
        ) from error
    return uvicorn.Server(config)


@dataclass(eq=False)
class OpenAIServer(NoOpenAIServer):
    """One front end's HTTP server. Its methods belong to the engine's event loop."""

    name: str  # the model's
    settings: OpenAISettings
    where: str  # the settings' place, for errors
    middleware: RequestMiddleware
    front_end: vllm_openai.FrontEnd  # vLLM's app
    server: Any  # uvicorn's
    slot: FrontEndSlot
    drain: Drain
    answers: AnswerCheck
    port: socket.socket | None  # None if another front end binds it first

    def __post_init__(self) -> None:
        self.traffic = self.middleware.traffic
        self._serving: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None  # kept, as asyncio itself does not
        self._cleanup = contextlib.ExitStack()

    async def serve(  # noqa: D102 (as above)
        self, llm: vllm_api.AsyncLLM, addresses: EngineAddresses | None
    ) -> None:
        if self.server.should_exit:  # the model is unloaded while its engine is restarted
            return
        from triton_vllm.vllm_api import api as vllm_api

        try:
            await self.front_end.attach(llm)
        except Exception as error:
            raise SettingsError(
                f"{self.where}: vLLM's app cannot be built: "
                f"{type(error).__name__}: {vllm_api.as_keys(error)}"
            ) from error
        app = ErrorTexts(self.front_end.app, vllm_api.why_wrong)
        self.middleware.app = AnswerLog(app, self.answers)
        if self._serving is None:
            self._serving = await self._open()

    async def _open(self) -> asyncio.Task[None]:
        """Listen; return the task that serves."""
        host, number = self.settings.host, self.settings.port
        port = self.port or self._cleanup.enter_context(
            bound_port(host, number, leads=False, shared=self.slot.count > 1, where=self.where)
        )
        serving = asyncio.create_task(self.server.serve([port]))
        while not self.server.started:
            await asyncio.wait([serving], timeout=0.01)
            if serving.done():
                raise SettingsError(f"{self.where}: port {number}: {serving.exception()}")
        config = self.server.config
        self.front_end.watch_certificates(config.ssl)
        if not self.slot.is_leader:
            self._following = asyncio.create_task(self._shut_down_with_leader())
        scheme = "https" if config.is_ssl else "http"
        logger.info(f"{self.name}: OpenAI-compatible HTTP on {scheme}://{host}:{number}/v1")
        return serving

    async def _shut_down_with_leader(self) -> None:
        await self.slot.wait_for_drain()
        await self.shut_down()

    async def shut_down(self) -> None:  # noqa: D102 (as above)
        self.server.should_exit = True
        self.slot.announce_drain()
        self.drain.begin(final=True)
        if self._serving is not None:
            # uvicorn is not to wait for clients that do not read how their requests were ended.
            self.server.config.timeout_graceful_shutdown = self._time_left()
            await asyncio.wait([self._serving])
        self.slot.announce_drained()
        await self.slot.wait_for_others(self._time_left())
        await self.front_end.close()
        self._cleanup.close()

    def _time_left(self) -> float:
        return self.drain.time_left(OPENAI) + _END_SECONDS

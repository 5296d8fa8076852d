"""The one file that imports vLLM's OpenAI-compatible front end, and knows where it is.

vLLM does not promise these names. Supported: vLLM 0.26 to 0.33; where they have moved on, importing
this file raises ImportError.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import typing
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.system_utils import set_ulimit
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.vllm_api.api import EngineArgsParser
from triton_vllm.vllm_api.compat import cli_args
from triton_vllm.vllm_api.versions import first

logger = logging.getLogger(__name__)

_app = first("vllm.entrypoints.launchers.app", "vllm.entrypoints.openai.api_server")
_app_state = first(
    "vllm.entrypoints.launchers.api_server.app_state", "vllm.entrypoints.openai.api_server"
)
_launcher = first("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.openai.api_server")
_server_utils = first(
    "vllm.entrypoints.launchers.utils.server_utils", "vllm.entrypoints.serve.utils.server_utils"
)
_ssl = first("vllm.entrypoints.launchers.utils.ssl", "vllm.entrypoints.serve.utils.ssl")


def frontend_args_parser() -> EngineArgsParser:
    """Return a parser that knows every option of ``vllm serve``."""
    return typing.cast(EngineArgsParser, cli_args.make_arg_parser(EngineArgsParser(add_help=False)))


def frontend_arg_types() -> dict[str, Any]:
    """Return the type hint of every option of the front end, the engine's not among them."""
    return {f.name: f.type for f in fields(cli_args.FrontendArgs)}


def complete(args: argparse.Namespace, engine_args: Any, model: str) -> argparse.Namespace:
    """Give ``args`` the engine's arguments, load parser plugins, and check all as vLLM does.

    ``model`` is the model's name as the operator wrote it: offline, vLLM's own becomes a path.
    Raises what vLLM raises, with its reason.
    """
    args.model = model
    _adopt(args, engine_args)
    for plugin, load in (
        (args.tool_parser_plugin, ToolParserManager.import_tool_parser),
        (args.reasoning_parser_plugin, ReasoningParserManager.import_reasoning_parser),
    ):
        if plugin:
            load(plugin)
    cli_args.validate_parsed_serve_args(args)
    _launcher.validate_api_server_args(args)
    if hasattr(cli_args, "propagate_flash_late_interaction"):  # newer than 0.26
        cli_args.propagate_flash_late_interaction(args, engine_args)
    return args


def _adopt(args: argparse.Namespace, engine_args: Any) -> None:
    """Set the engine's arguments in ``args``, except those that the front end has chosen."""
    for field in fields(AsyncEngineArgs):
        if field.name not in ("model", "served_model_name"):
            setattr(args, field.name, getattr(engine_args, field.name))
    args.served_model_name = args.served_model_name or engine_args.served_model_name


class FrontEnd:
    """vLLM's own app, with all its routes, around the ``AsyncLLM`` that lives. Event loop only."""

    def __init__(
        self, args: argparse.Namespace, engine_args: Any, default_max_tokens: int = 0
    ) -> None:
        """``args`` are those of ``complete``; ``default_max_tokens`` 0 is the model's own."""
        self._args = args
        self._default_max_tokens = default_max_tokens
        self._engine_args = engine_args
        self._lifespan = contextlib.AsyncExitStack()
        self.app: Any = None

    async def attach(self, llm: AsyncLLM) -> None:
        """Build the app around ``llm``; an app that exists gets ``llm`` in place of the old one."""
        _adopt(self._args, self._engine_args)  # whose configuration may have changed them
        tasks = await llm.get_supported_tasks()
        app = self.app or _app.build_app(self._args, tasks, llm.model_config)
        await _app_state.init_app_state(llm, app.state, self._args, tasks)
        if self._default_max_tokens:
            _set_default_max_tokens(app.state, self._default_max_tokens)
        app.state.log_stats = False  # the engine logs them
        # vLLM's error handler ends the server of a dead engine. This server waits for a restart.
        app.state.server = SimpleNamespace(should_exit=False)
        if self.app is None:
            await self._lifespan.enter_async_context(app.router.lifespan_context(app))
            self.app = app

    def watch_certificates(self, ssl_context: Any) -> None:
        """Reload the TLS files when they change, until ``close``, if asked to."""
        args = self._args
        if args.enable_ssl_refresh and ssl_context is not None:
            files = (args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
            self._lifespan.callback(_ssl.SSLCertRefresher(ssl_context, *files).stop)

    async def close(self) -> None:
        """End the app."""
        await self._lifespan.aclose()


# What answers chat and Responses.
_SERVING = ("openai_serving_chat", "openai_serving_chat_batch", "openai_serving_responses")


def _set_default_max_tokens(state: Any, tokens: int) -> None:
    """Have a request of the app without ``max_tokens`` generate up to ``tokens`` tokens.

    Not by ``override_generation_config``, which vLLM's app takes for an upper limit, too.
    """
    try:
        for serving in filter(None, (getattr(state, name, None) for name in _SERVING)):
            serving.default_sampling_params["max_tokens"] = tokens
        # vLLM's class takes the 16 of OpenAI's completions from its own field. One model has this
        # process to itself.
        CompletionRequest.model_fields["max_tokens"].default = tokens
        holds = CompletionRequest(prompt="a").max_tokens == tokens
    except (AttributeError, KeyError, TypeError):
        holds = False
    if not holds:
        logger.warning('"default_max_tokens" does not hold on the OpenAI port of this vLLM')


def with_cors(app: Any, args: argparse.Namespace) -> Any:
    """Return ``app`` behind the CORS middleware, as vLLM sets it up for its own app."""
    return CORSMiddleware(
        app,
        allow_origins=args.allowed_origins,
        allow_credentials=args.allow_credentials,
        allow_methods=args.allowed_methods,
        allow_headers=args.allowed_headers,
    )


_UVICORN_OPTIONS = ["ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"]
_UVICORN_OPTIONS += ["h11_max_incomplete_event_size"]


def uvicorn_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``uvicorn.Config``, as ``vllm serve`` sets them."""
    set_ulimit()  # a connection is a file
    log_config = _server_utils.get_uvicorn_log_config(args)
    return {
        **({} if log_config is None else {"log_config": log_config}),
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        **{name: getattr(args, name) for name in _UVICORN_OPTIONS},
    }

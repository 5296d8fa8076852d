"""Checks the settings of a model whose OpenAI port vLLM's Rust front end serves, before the load.

Nothing is lost unseen: what the Rust front end has not fails the load, or is named in the log.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triton_vllm.config.openai import OpenAISettings
from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import ServingError, SettingsError, one_line
from triton_vllm.limits.admission import OPENAI, Admission
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api.arguments import parse_frontend_args
from triton_vllm.openai_api.rust_server import RustServer
from triton_vllm.openai_api.server import warn_if_open
from triton_vllm.openai_api.unavailable import UnavailableServer

if TYPE_CHECKING:
    from triton_vllm.vllm_api import api as vllm_api

logger = logging.getLogger(__name__)

# What holds for Triton's protocols alone, and the value with which nothing is lost.
_LOST: Mapping[str, Any] = {
    "default_max_tokens": 0,
    "default_timeout_seconds": 0.0,
    "max_concurrent_requests": 0,
    "max_queued_tokens": 0,
    "unsupported_schema_keywords": "serve",
}


def rust_server(
    settings: ModelSettings,
    openai: OpenAISettings,
    engine_args: vllm_api.AsyncEngineArgs,
    admission: Admission,
    drain: Drain,
    port: socket.socket,
    where: str,
) -> RustServer:
    """Return the server of the leading front end; ``port`` is bound.

    Raises SettingsError for what the Rust front end has not, so that nothing is lost unseen.
    """
    from triton_vllm.vllm_api.rust_front_end import RustFrontEnd, find_binary

    for key, harmless in _LOST.items():
        if getattr(settings.serving, key) != harmless:
            raise SettingsError(
                f'{where}: "server": "rust" has no "serving.{key}": leave it out, or use '
                '"server": "python"'
            )
    keys = openai.read_api_keys(where)
    if len(keys) > 1:
        raise SettingsError(f'{where}: "server": "rust" takes one API key, got {len(keys)}')
    warn_if_open(openai, keys, where)
    front_end = RustFrontEnd(find_binary(where), where)
    chat = {key: value for key, value in settings.chat.items() if front_end.has(key)}
    if lost := sorted(settings.chat.keys() - chat.keys()):
        logger.warning(f"{where}: vLLM's Rust front end has no {', '.join(lost)}")
    given = {**chat, **openai.frontend}
    args = parse_frontend_args(given, engine_args, settings.engine_args["model"], where)
    front_end.check_names(openai.frontend)
    if openai.served_model_name:
        args.served_model_name = list(openai.served_model_name)
    front_end.configure(args, settings.engine_args, engine_args.model, drain.seconds[OPENAI])
    unavailable = UnavailableServer(port, _certificate(args, where), lambda: _why(admission))
    return RustServer(settings.name, where, front_end, keys, drain, port, unavailable)


def _why(admission: Admission) -> str:
    try:
        admission.check_open()
    except ServingError as why:
        return str(why)
    return "there is no server behind this port now, try again"


def _certificate(args: Any, where: str) -> ssl.SSLContext | None:
    """Return the certificate of a port with TLS. Raises SettingsError."""
    if not args.ssl_certfile:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f'{where}: "ssl_certfile" ({args.ssl_certfile}), "ssl_keyfile" '
            f"({args.ssl_keyfile}): {one_line(error)}"
        ) from error
    return context

"""Loads an engine: what has to precede vLLM's import, the import, and the start.

This is the one place that imports vLLM late. What it imports at its top has no vLLM in it, and what
``engine.start`` imports may have.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError
from triton_vllm.log import StartupTimer
from triton_vllm.openai_api.port import bound_port
from triton_vllm.topology.cpus import parse_cpus
from triton_vllm.topology.fork_server import ForkServer, NoForkServer
from triton_vllm.topology.front_ends import FrontEndSlot
from triton_vllm.topology.instances import Instance
from triton_vllm.vllm_api.engine_process import preload
from triton_vllm.vllm_api.kernels import explained
from triton_vllm.vllm_api.versions import unusable_vllm

if TYPE_CHECKING:
    from triton_vllm.engine.engine import Engine

logger = logging.getLogger(__name__)


def load_engine(settings: ModelSettings, server: ServerOptions) -> Engine:
    """Import vLLM, load the model, warm it up: seconds to minutes.

    Raises SettingsError, one line with what the operator can mend, or what vLLM raised.
    """
    where = str(settings.engine_args_path)
    timer = StartupTimer(settings.name)
    if settings.serving.vllm_log_level:
        os.environ["VLLM_LOGGING_LEVEL"] = settings.serving.vllm_log_level
    if preload.compile_nothing_without_a_compiler():
        logger.warning(f"{settings.name}: no C++ compiler (g++), so nothing is compiled by torch")
    cpus = parse_cpus(
        settings.serving.engine_cpu_affinity, f'{where}: "serving.engine_cpu_affinity"'
    )
    with contextlib.ExitStack() as held:
        # First of all, as it sets what CUDA and prometheus_client read when they are imported.
        instance = Instance.claim(settings, held)
        instance = replace(
            instance,
            engine_cpus=cpus,
            port=_bind_port(instance.settings, instance.slot, held),  # in use, it fails at once
            fork_server=_start_fork_server(instance, held),
        )
        try:
            engine = _import_engine()(instance, server, held, timer)
        except SettingsError:
            raise
        except Exception as error:
            logger.error(f"{settings.name}: the engine did not start\n{traceback.format_exc()}")
            cause = instance.errors.first() or f"{type(error).__name__}: {error}"
            why = explained(_as_keys(cause))
            raise SettingsError(f"{where}: the engine did not start: {why}") from error
    timer.total("ready")
    return engine


def _import_engine() -> Callable[..., Engine]:
    """Import vLLM, and return what starts an engine. Raises SettingsError for an unknown vLLM."""
    gc.disable()  # a fifth of the import's time, and an import leaves hardly any garbage
    try:
        from triton_vllm.engine.start import start_engine
    except ImportError as error:
        raise unusable_vllm(error) from error
    finally:
        gc.enable()
    return start_engine


def _as_keys(cause: str) -> str:
    """Return what vLLM said with its flags as keys."""
    vllm_api = sys.modules.get("triton_vllm.vllm_api.api")  # not there if vLLM's import failed
    return cause if vllm_api is None else str(vllm_api.as_keys(cause))


def _start_fork_server(instance: Instance, held: contextlib.ExitStack) -> NoForkServer:
    """Let another process import vLLM beside this one, if this front end starts the engine."""
    settings = instance.settings
    if not (settings.serving.preload and instance.slot.is_leader):
        return NoForkServer()
    try:
        server = ForkServer(settings.name, preload.MODULE, preload.engine_variables())
    except OSError as error:
        logger.warning(f"{settings.name}: no fork server, so a start takes longer: {error}")
        return NoForkServer()
    held.callback(server.stop)
    return server


def _bind_port(
    settings: ModelSettings, slot: FrontEndSlot, held: contextlib.ExitStack
) -> socket.socket | None:
    """Bind the OpenAI port, if there is one and this front end leads. Raises SettingsError."""
    openai = settings.serving.openai
    if openai is None or not slot.is_leader:
        return None
    where = f'{settings.engine_args_path}: "serving.openai"'
    shared = slot.count > 1 and not settings.rust_clients
    return held.enter_context(
        bound_port(openai.host, openai.port, leads=True, shared=shared, where=where)
    )

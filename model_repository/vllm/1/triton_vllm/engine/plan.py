"""Resolves and checks an engine's configuration before it starts."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError, one_line
from triton_vllm.log import StartupTimer
from triton_vllm.openai_api.port import bound_port
from triton_vllm.topology.cpus import parse_cpus
from triton_vllm.topology.front_ends import FrontEndSlot, SingleFrontEnd
from triton_vllm.topology.instances import Instance
from triton_vllm.topology.load_balancing import NoLoadBalancer
from triton_vllm.topology.stub_process import EngineErrors
from triton_vllm.vllm_api.versions import unusable_vllm

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """How one front end starts its engine, or joins it.

    ``settings`` are those of the engine that this front end belongs to, ``label`` distinguishes it
    from others of the model, ``slot`` is the place among its front ends, ``balancer`` levels the
    requests of the engines, ``errors`` holds what the engine's processes log. ``port`` is the
    OpenAI port, bound if this front end leads. ``vllm`` is the module ``vllm_api``, ``args`` are
    vLLM's engine arguments for this front end, ``cluster`` the nodes. ``config`` is vLLM's, for the
    first start; each later one needs a new one. ``chat`` holds the options of its chat.
    """

    settings: ModelSettings
    label: str
    slot: FrontEndSlot | SingleFrontEnd
    balancer: NoLoadBalancer
    errors: EngineErrors
    engine_cpus: Any
    port: socket.socket | None
    vllm: Any
    args: Any
    reports_metrics: bool
    cluster: Any
    config: Any
    chat: argparse.Namespace


def resolve(
    settings: ModelSettings, server_metrics: bool, held: contextlib.ExitStack, timer: StartupTimer
) -> EnginePlan:
    """Import vLLM and resolve the model's configuration. Takes seconds.

    ``server_metrics``: the server has metrics. ``held`` takes what must be released at the end.
    Raises SettingsError, one line with what the operator can mend.
    """
    where = str(settings.engine_args_path)
    if settings.serving.vllm_log_level:
        os.environ["VLLM_LOGGING_LEVEL"] = settings.serving.vllm_log_level
    cpus = parse_cpus(
        settings.serving.engine_cpu_affinity, f'{where}: "serving.engine_cpu_affinity"'
    )
    # First of all, as it sets what CUDA and prometheus_client read when they are imported.
    instance = Instance.claim(settings, held)
    settings, slot = instance.settings, instance.slot
    port = _bind_port(settings, slot, held)  # a port that is in use fails the load at once
    try:
        from triton_vllm.vllm_api import api as vllm_api
        from triton_vllm.vllm_api.arguments import parse_engine_args
        from triton_vllm.vllm_api.parallel import cluster_of
        from triton_vllm.vllm_api.render.chat import parse_chat_args
    except ImportError as error:
        raise unusable_vllm(error) from error
    vllm: Any = vllm_api
    timer.lap(f"vLLM {vllm_api.version()} imported")
    args: Any = parse_engine_args(settings.engine_args, where, logger.warning)
    reports_metrics = settings.report_metrics and not args.disable_log_stats and server_metrics
    _check(args, settings.front_ends, where)
    if slot.count > 1:
        # vLLM logs no statistics when several front ends share an engine, as none of them sees the
        # whole; so do not pay for collecting them, unless they are exported.
        args.disable_log_stats = not reports_metrics
        args = vllm.as_front_end(args, slot.index, slot.count)
    cluster = cluster_of(args, instance.devices, settings)
    try:
        config = vllm.create_config(args)
    except Exception as error:
        raise SettingsError(f'{where}: model "{args.model}": {one_line(error)}') from error
    chat = parse_chat_args(settings.chat, args, where)
    timer.lap(f"configuration of {args.model} resolved")
    if not vllm.is_pooling(config):
        logger.info(
            f"{settings.name}: structured outputs by {vllm.library_of(config)} for the engine's "
            'life; "structured_outputs_config": {"backend": ...} chooses another'
        )
    return EnginePlan(
        settings=settings,
        label=instance.label,
        slot=slot,
        balancer=instance.balancer,
        errors=instance.errors,
        engine_cpus=cpus,
        port=port,
        vllm=vllm,
        args=args,
        reports_metrics=reports_metrics,
        cluster=cluster,
        config=config,
        chat=chat,
    )


def _bind_port(
    settings: ModelSettings, slot: FrontEndSlot | SingleFrontEnd, held: contextlib.ExitStack
) -> socket.socket | None:
    """Bind the OpenAI port, if there is one and this front end leads. Raises SettingsError."""
    openai = settings.serving.openai
    if openai is None or not slot.is_leader:
        return None
    where = f'{settings.engine_args_path}: "serving.openai"'
    return held.enter_context(
        bound_port(openai.host, openai.port, leads=True, shared=slot.count > 1, where=where)
    )


def _check(args: Any, front_ends: int, where: str) -> None:
    """Warn of what is dangerous in the engine arguments. Raises SettingsError."""
    if args.trust_remote_code:
        logger.warning(
            f'{where}: "trust_remote_code" runs code that comes with the model, with all '
            "rights of the server"
        )
    if front_ends > 1 and getattr(args, "mm_tensor_ipc", None) == "torch_shm":
        raise SettingsError(
            f'{where}: "mm_tensor_ipc": "torch_shm" needs one front end, and '
            f"config.pbtxt has instance_group count {front_ends}"
        )

"""Resolves and checks an engine's configuration before it starts."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass, fields
from typing import Any

from triton_vllm.errors import SettingsError
from triton_vllm.log import StartupTimer
from triton_vllm.topology.instances import Instance
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.arguments import parse_engine_args
from triton_vllm.vllm_api.parallel import cluster_of
from triton_vllm.vllm_api.render.chat import parse_chat_args

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan(Instance):
    """How one front end, an instance of the model, starts its engine, or joins it.

    ``args`` are vLLM's engine arguments for this front end, ``cluster`` the nodes. ``config`` is
    vLLM's, for the first start; each later one needs a new one. ``chat`` holds the options of its
    chat.
    """

    args: vllm_api.AsyncEngineArgs
    reports_metrics: bool
    cluster: Any
    config: Any
    chat: argparse.Namespace


def resolve(instance: Instance, server_metrics: bool, timer: StartupTimer) -> EnginePlan:
    """Resolve the model's configuration. Takes seconds.

    ``server_metrics``: the server has metrics. Raises SettingsError, one line with what the
    operator can mend.
    """
    settings, slot = instance.settings, instance.slot
    where = str(settings.engine_args_path)
    args = parse_engine_args(settings.engine_args, where, logger.warning)
    reports_metrics = settings.report_metrics and not args.disable_log_stats and server_metrics
    _check(args, settings.front_ends, where)
    clients = slot.count + settings.rust_clients
    if clients > 1:
        # vLLM logs no statistics when several front ends share an engine, as none of them sees the
        # whole; so do not pay for collecting them, unless they are exported.
        args.disable_log_stats = not reports_metrics
        args = vllm_api.as_front_end(args, slot.index + settings.rust_clients, clients)
    cluster = cluster_of(args, instance.devices, settings)
    try:
        with vllm_api.inspected_in(instance.fork_server):
            config = vllm_api.create_config(args)
    except Exception as error:
        reason = vllm_api.as_keys(error)
        raise SettingsError(f'{where}: model "{args.model}": {reason}') from error
    chat = parse_chat_args(settings.chat, args, where)
    timer.lap(f"configuration of {args.model} resolved")
    if vllm_api.is_pooling(config):
        if settings.rust_clients:
            raise SettingsError(
                f'{where}: "serving.openai": "server": "rust" serves models that generate text; '
                'this one pools: "server": "python" serves it'
            )
    else:
        refuse = settings.serving.unsupported_schema_keywords == "refuse"
        library = vllm_api.library_of(config, where, refuse=refuse)
        logger.info(
            f"{settings.name}: structured outputs by {library} for the engine's "
            'life; "structured_outputs_config": {"backend": ...} chooses another'
        )
    return EnginePlan(
        **{found.name: getattr(instance, found.name) for found in fields(instance)},
        args=args,
        reports_metrics=reports_metrics,
        cluster=cluster,
        config=config,
        chat=chat,
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

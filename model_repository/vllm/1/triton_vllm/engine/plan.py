"""What an engine is to be: place, arguments, configuration; known and checked before it starts."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError, one_line
from triton_vllm.log import StartupTimer
from triton_vllm.topology.cpus import parse_cpus
from triton_vllm.topology.instances import Instance
from triton_vllm.vllm_api.versions import unusable_vllm

logger = logging.getLogger(__name__)


class Launch:
    """How one front end starts its engine, or joins it.

    ``settings`` are those of the engine that this front end belongs to, ``label`` tells it from
    others of the model, ``slot`` is the place among its front ends, ``balancer`` levels the
    requests of the engines, ``errors`` what the engine's processes log. ``vllm`` is the
    module ``vllm_api``, ``args`` vLLM's engine arguments as they concern this front end,
    ``cluster`` the machines. ``resolve`` sets ``config``, vLLM's, and ``chat``, the options of its
    chat.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        server_metrics: bool,
        cleanup: contextlib.ExitStack,
        timer: StartupTimer,
    ) -> None:
        """Import vLLM, which takes seconds. What is to be given back goes into ``cleanup``.

        ``server_metrics``: the server has metrics. Raises SettingsError, one line with what the
        operator can mend.
        """
        self._where = where = str(settings.engine_args_path)
        if settings.serving.vllm_log_level:
            os.environ["VLLM_LOGGING_LEVEL"] = settings.serving.vllm_log_level
        self.engine_cpu_affinity = parse_cpus(
            settings.serving.engine_cpu_affinity, f'{where}: "serving.engine_cpu_affinity"'
        )
        instance = Instance.claim(settings, cleanup)
        self.settings, self.label = instance.settings, instance.label
        self.slot, self.balancer, self.errors = instance.slot, instance.balancer, instance.errors
        try:
            from triton_vllm.vllm_api import api as vllm_api
            from triton_vllm.vllm_api.arguments import parse_engine_args
            from triton_vllm.vllm_api.parallel import cluster_of
        except ImportError as error:
            raise unusable_vllm(error) from error
        self.vllm = vllm_api
        timer.lap(f"vLLM {vllm_api.version()} imported")
        self.args = parse_engine_args(settings.engine_args, where, logger.warning)
        self.reports_metrics = (
            settings.report_metrics and not self.args.disable_log_stats and server_metrics
        )
        self._adapt_args()
        self.cluster = cluster_of(self.args, instance.devices, settings)

    def resolve(self, timer: StartupTimer) -> None:
        """Read the model's configuration, which sets ``config`` and ``chat``. Takes seconds.

        Raises SettingsError for a model that cannot be had, or options of chat that are wrong.
        """
        try:
            self.config = self.vllm.create_config(self.args)
        except Exception as error:
            raise SettingsError(
                f'{self._where}: model "{self.args.model}": {one_line(error)}'
            ) from error
        from triton_vllm.vllm_api.render.chat import parse_chat_args

        self._config_is_new = True
        self.chat = parse_chat_args(self.settings.chat, self.args, self._where)
        timer.lap(f"configuration of {self.args.model} resolved")
        if self.vllm.is_pooling(self.config):
            return
        logger.info(
            f"{self.settings.name}: structured outputs by {self.vllm.library_of(self.config)} for "
            'the engine\'s life; "structured_outputs_config": {"backend": ...} chooses another'
        )

    def take_config(self) -> Any:
        """Return a configuration that no engine has had."""
        if not self._config_is_new:
            self.config = self.vllm.create_config(self.args)
        self._config_is_new = False
        return self.config

    def _adapt_args(self) -> None:
        """Warn of what is dangerous in the engine arguments, and make them this front end's."""
        args, count = self.args, self.settings.front_ends
        if args.trust_remote_code:
            logger.warning(
                f'{self._where}: "trust_remote_code" runs code that comes with the model, with all '
                "rights of the server"
            )
        if count == 1:
            return
        if getattr(args, "mm_tensor_ipc", None) == "torch_shm":
            raise SettingsError(
                f'{self._where}: "mm_tensor_ipc": "torch_shm" needs one front end, and '
                f"config.pbtxt has instance_group count {count}"
            )
        # vLLM logs no statistics when several front ends share an engine, as none of them sees the
        # whole; so do not pay for collecting them, unless they are exported.
        args.disable_log_stats = not self.reports_metrics
        self.args = self.vllm.as_front_end(args, self.slot.index, self.slot.count)

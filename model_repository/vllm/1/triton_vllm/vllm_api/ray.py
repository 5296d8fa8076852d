"""vLLM's Ray executor, whose wait for its workers' places has an end.

Needed only where the engine arguments ask for Ray. Importing this file imports vLLM, so do it late.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor import Executor, ray_utils

from triton_vllm.topology.ray_cluster import Placement

_CHOICE: Any = SimpleNamespace(distributed_executor_backend="ray")
# Which of its two an operator chooses by a variable.
_VLLMS: Any = Executor.get_class(SimpleNamespace(parallel_config=_CHOICE))


class RayExecutor(_VLLMS):  # type: ignore[misc]
    """The executor that vLLM takes for Ray. The engine core finds it by its name."""

    def _init_executor(self) -> None:
        """Start the workers; wait for their places no longer than the front end offers."""
        placement = Placement.of_environment()
        if placement is not None:
            device = str(current_platform.ray_device_key)
            ray_utils._wait_until_pg_ready = lambda group: placement.wait(group, device)
        super()._init_executor()

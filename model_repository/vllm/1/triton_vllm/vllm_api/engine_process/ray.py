"""vLLM's Ray executor, with the operator's timeout and one line that says what Ray lacks.

Imported only if the engine arguments ask for Ray.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.executor import Executor, ray_utils

from triton_vllm.topology.nodes import JOIN_TIMEOUT

_CHOICE: Any = SimpleNamespace(distributed_executor_backend="ray")
# Where vLLM has two, an operator chooses one by an environment variable.
_VLLMS: Any = Executor.get_class(SimpleNamespace(parallel_config=_CHOICE))


class RayExecutor(_VLLMS):  # type: ignore[misc]
    """The executor that vLLM uses for Ray. The engine core finds it by its name."""

    def _init_executor(self) -> None:
        """Start the workers. Raises TimeoutError if Ray has no GPUs for them in time.

        vLLM looks at the time after 10, 30, 70, 150, 310 and 630 s.
        """
        ray_utils.PG_WAIT_TIMEOUT = float(os.environ[JOIN_TIMEOUT])
        try:
            super()._init_executor()
        except ValueError as error:
            if "placement group" not in str(error):
                raise
            raise TimeoutError(
                f"{missing(self.parallel_config.world_size)} within {ray_utils.PG_WAIT_TIMEOUT:g} "
                's ("serving.cluster_join_timeout_seconds")'
            ) from error


def missing(workers: int) -> str:
    """Return how many devices of how many nodes the Ray cluster has free for so many workers."""
    import ray

    device = str(current_platform.ray_device_key)
    nodes = {
        node["NodeManagerAddress"]: int(node["Resources"].get(device, 0))
        for node in ray.nodes()
        if node["Alive"]
    }
    listed = ", ".join(f"{address} with {n}" for address, n in sorted(nodes.items()))
    return (
        f"the Ray cluster has {int(ray.available_resources().get(device, 0))} of {workers} "
        f"{device}s free, on {len(nodes)} node{'s' if len(nodes) != 1 else ''} ({listed})"
    )

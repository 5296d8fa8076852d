"""What of vLLM has to do with several GPUs and several machines.

Importing this file imports vLLM, so do it late.
"""

from __future__ import annotations

from typing import Any

from vllm.config import ParallelConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.executor import Executor

from triton_vllm.topology.nodes import Rendezvous


def visible_gpus() -> int | None:
    """Return how many GPUs this process sees; None where this vLLM needs none, as on the CPU.

    Asks NVML, which respects CUDA_VISIBLE_DEVICES and leaves CUDA alone.
    """
    if current_platform.is_cuda_alike():
        return int(current_platform.device_count())
    return 0 if current_platform.is_unspecified() else None


def ray_device() -> str:
    """Return what Ray calls this vLLM's devices; empty where Ray has no name for them."""
    return str(current_platform.ray_device_key)


def executor_class(config: Any) -> Any:
    """Return the class of what runs the workers of an engine core: vLLM's, or ours around it."""
    if config.parallel_config.distributed_executor_backend == "ray":
        from triton_vllm.vllm_api.ray import RayExecutor

        return RayExecutor
    return Executor.get_class(config)


def rendezvous(args: AsyncEngineArgs) -> Rendezvous | None:
    """Return where the other machines of the engine, or its other ranks, connect to this one.

    None where another machine is the head.
    """
    config = ParallelConfig()
    if args.data_parallel_rank or args.data_parallel_start_rank or args.node_rank:
        return None
    address = args.master_addr or config.data_parallel_master_ip
    if args.data_parallel_size == 1:
        return Rendezvous(address, args.master_port, args.nnodes, "machines")
    address = args.data_parallel_address or address
    port = args.data_parallel_rpc_port or config.data_parallel_rpc_port
    return Rendezvous(address, port, args.data_parallel_size, "engines")

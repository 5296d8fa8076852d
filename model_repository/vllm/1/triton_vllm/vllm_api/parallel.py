"""vLLM's parallelism: several GPUs and several nodes, and the classes that run on them."""

from __future__ import annotations

import os
from typing import Any

from vllm.config import ParallelConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.executor import Executor

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError
from triton_vllm.topology.gpus import Parallelism, check_gpus
from triton_vllm.topology.nodes import JOIN_TIMEOUT, MultiNode, Rendezvous, SingleNode

# By name: the front end imports neither.
_CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
_OUR_CPU_WORKER = "triton_vllm.vllm_api.engine_process.cpu.Worker"
_OUR_SCHEDULERS = "triton_vllm.vllm_api.engine_process.scheduler.Rust"


def visible_gpus() -> int | None:
    """Return how many GPUs this process sees; None where this vLLM needs none, as on the CPU.

    Asks NVML, which respects CUDA_VISIBLE_DEVICES and leaves CUDA alone.
    """
    if current_platform.is_cuda_alike():
        return int(current_platform.device_count())
    return 0 if current_platform.is_unspecified() else None


def executor_class(config: Any) -> Any:
    """Return the class that runs an engine core's workers: vLLM's, or a subclass of it for Ray."""
    if config.parallel_config.distributed_executor_backend == "ray":
        from triton_vllm.vllm_api.engine_process.ray import RayExecutor

        return RayExecutor
    return Executor.get_class(config)


def choose_worker(config: Any) -> None:
    """Have ``Worker`` of ``engine_process.cpu`` run the model where vLLM's worker on a CPU would.

    Not with Ray: its nodes need not have this package, and the engine would wait for its workers.
    """
    parallel = config.parallel_config
    if parallel.worker_cls == _CPU_WORKER and parallel.distributed_executor_backend != "ray":
        parallel.worker_cls = _OUR_CPU_WORKER


def choose_scheduler(config: Any) -> None:
    """Have a scheduler that can abort all requests of vLLM's Rust front end, unless one is named.

    vLLM warns of it, as of any that is named.
    """
    scheduler = config.scheduler_config
    if scheduler.scheduler_cls is None:
        kind = "AsyncScheduler" if scheduler.async_scheduling else "Scheduler"
        scheduler.scheduler_cls = _OUR_SCHEDULERS + kind


def rendezvous(args: AsyncEngineArgs) -> Rendezvous | None:
    """Return where the other machines of the engine, or its other ranks, connect to this one.

    None where another machine is the head.
    """
    config = ParallelConfig()
    if args.data_parallel_rank or args.data_parallel_start_rank or args.node_rank:
        return None
    address = args.master_addr or config.data_parallel_master_ip
    if args.data_parallel_size == 1:
        return Rendezvous(address, args.master_port, args.nnodes, "nodes")
    address = args.data_parallel_address or address
    port = args.data_parallel_rpc_port or config.data_parallel_rpc_port
    return Rendezvous(address, port, args.data_parallel_size, "engines")


def cluster_of(args: Any, devices: str, settings: ModelSettings) -> SingleNode:
    """Return the nodes that vLLM's engine arguments ask for.

    ``devices`` are the GPUs that config.pbtxt gives to the engine, if any. Raises SettingsError
    where this node has fewer than asked for, vLLM cannot use Ray, or its engine cores would be
    Ray's actors: then the front end is a driver of Ray's, and nothing here notices when they die.
    """
    where = str(settings.engine_args_path)
    if args.data_parallel_backend == "ray":
        raise SettingsError(
            f'{where}: "data_parallel_backend": "ray" is not supported, as the death of such an '
            'engine would not be noticed: use "data_parallel_size_local", and '
            "scripts/join_cluster.sh on the other nodes"
        )
    parallelism = Parallelism.of(args)
    check_gpus(parallelism, devices, visible_gpus, where)
    seconds = settings.serving.cluster_join_timeout_seconds
    if parallelism.here is None:
        if not current_platform.ray_device_key:
            raise SettingsError(
                f'{where}: "distributed_executor_backend": "ray" needs GPUs, and this vLLM is '
                "built for a device that it does not use with Ray"
            )
        os.environ[JOIN_TIMEOUT] = str(seconds)
    elif parallelism.is_spread:
        return MultiNode(rendezvous(args), seconds)
    return SingleNode()

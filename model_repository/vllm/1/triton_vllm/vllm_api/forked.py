"""What vLLM starts from the fork server in place of processes that would import vLLM again.

An engine core's workers are started in the engine core (engine_process/engine_modules.py).
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
from vllm.model_executor.models import registry
from vllm.plugins import load_general_plugins
from vllm.v1.engine import coordinator
from vllm.v1.engine import utils as engine_utils

from triton_vllm.topology.fork_server import NoForkServer

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def cores_from(fork_server: NoForkServer, config: Any) -> Iterator[None]:
    """Have vLLM start its engine cores from the fork server, if it can, and their coordinator.

    vLLM lets numactl start a core that is bound to a NUMA node, and looks after Ray itself.
    """
    parallel = config.parallel_config
    by_others = getattr(parallel, "numa_bind", False) or (
        parallel.distributed_executor_backend == "ray"
    )
    choose = getattr(engine_utils, "get_mp_context", None)
    if choose is None or by_others:
        yield
        return
    for module in (engine_utils, coordinator):
        module.get_mp_context = lambda: fork_server.context(choose())
    try:
        yield
    finally:
        for module in (engine_utils, coordinator):
            module.get_mp_context = choose


@contextlib.contextmanager
def inspected_in(fork_server: NoForkServer) -> Iterator[None]:
    """Have vLLM inspect a model's class in a fork, where it would have a process import vLLM."""
    run = getattr(registry, "_run_in_subprocess", None)
    spawn = multiprocessing.get_context("spawn")
    context = fork_server.context(spawn)
    if run is None or context is spawn:
        yield
        return
    registry._run_in_subprocess = lambda function: _run_in_fork(context, function, run)
    try:
        yield
    finally:
        registry._run_in_subprocess = run


def _run_in_fork(context: Any, function: Callable[[], Any], run: Callable[..., Any]) -> Any:
    """Return what ``function`` returns in a process of ``context``, else that which ``run`` has."""
    result, theirs = context.Pipe(duplex=False)
    pickled = cloudpickle.dumps(function)
    process = context.Process(target=_inspect, args=(pickled, theirs), name="ModelInspection")
    process.start()
    theirs.close()
    with result:
        try:
            return result.recv()
        except EOFError:
            logger.warning("no fork has inspected the model's class, so vLLM does it its own way")
            return run(function)
        finally:
            process.kill()
            process.join()


def _inspect(pickled: bytes, result: Connection) -> None:
    """Do what vLLM's own process does."""
    load_general_plugins()
    result.send(pickle.loads(pickled)())  # noqa: S301 - the stub's own

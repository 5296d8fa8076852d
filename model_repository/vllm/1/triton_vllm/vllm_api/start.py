"""vLLM's engine: its start, as a front end's own or shared by several, and its processes.

A difference between versions is found by looking for the feature, never by comparing version
numbers. Importing this file imports vLLM, so do it late.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from dataclasses import replace
from typing import Any

import psutil
import zmq
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.utils.network_utils import get_open_port, get_open_zmq_ipc_path, get_tcp_uri
from vllm.v1.engine import core_client
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.errors import SettingsError
from triton_vllm.topology.front_ends import EngineAddresses
from triton_vllm.vllm_api.guard import GuardedLLM
from triton_vllm.vllm_api.parallel import choose_scheduler, choose_worker, executor_class
from triton_vllm.vllm_api.structured_outputs import choose_library

# `max_num_batched_tokens` and friends default by usage context: take the ones of `vllm serve`.
USAGE_CONTEXT = UsageContext.OPENAI_API_SERVER

_LAUNCH_TAKES_COUNT = (
    "num_api_servers" in inspect.signature(engine_utils.launch_core_engines).parameters
)

# What vLLM infers of these it writes back into the arguments, where a second look, for a restart or
# for the engine behind several front ends, would take it for the operator's wish.
_INFERRED = ("data_parallel_rank", "data_parallel_size_local", "data_parallel_hybrid_lb")

_RUST_RESTARTS = 8  # with one engine, which tries to connect to the address of each in the meantime
_WORKER = "::Worker"  # in what a worker's process calls itself
_LOOK_SECONDS = 0.1  # between two questions whether sockets are closed
_JOIN_SECONDS = 30  # for an engine that has loaded its model to answer one more front end


def create_config(engine_args: AsyncEngineArgs) -> Any:
    """Resolve engine arguments to a ``VllmConfig``, with the defaults of ``vllm serve``.

    Only the structured-output library, for the engine's life, and the worker on a CPU are chosen
    here.
    """
    given = {name: getattr(engine_args, name) for name in _INFERRED}
    try:
        config = engine_args.create_engine_config(usage_context=USAGE_CONTEXT)
    finally:
        for name, value in given.items():
            setattr(engine_args, name, value)
    choose_library(config)
    choose_worker(config)
    return config


def create_engine(engine_args: AsyncEngineArgs, config: Any, **front_end: Any) -> GuardedLLM:
    """Start an ``AsyncLLM``, which will live in the event loop that uses it first. Blocks.

    ``front_end`` holds ``client_addresses``, ``client_count`` and ``client_index`` when the
    engine is shared by several processes; without them the engine core is started here.
    """
    if front_end:  # its model is loaded: one that does not answer now has died
        core_client.VLLM_ENGINE_READY_TIMEOUT_S = _JOIN_SECONDS
    llm: GuardedLLM = GuardedLLM.from_vllm_config(
        config,
        usage_context=USAGE_CONTEXT,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
        **front_end,
    )
    return llm


def shut_down(llm: AsyncLLM, timeout: float) -> None:
    """End the front end's part of an engine, and the engine where it is its own. Event loop only.

    A ZMQ context that is freed waits until nothing is left of its sockets. After an engine had been
    killed under load that once took for ever, on the event loop, which had met the garbage. So a
    thread ends the context, and may wait.
    """
    resources = llm.engine_core.resources
    llm.shutdown(timeout=timeout)
    threading.Thread(target=_end_context, args=(resources,), name="zmq end", daemon=True).start()


def _end_context(resources: core_client.BackgroundResources) -> None:
    sockets = [value for value in vars(resources).values() if isinstance(value, zmq.Socket)]
    # The event loop closes them, at once or when vLLM's watch over the engine has asked it to. One
    # that is open would fail there again and again, its context being at its end.
    while not all(socket.closed for socket in sockets):
        time.sleep(_LOOK_SECONDS)
    resources.ctx.term()


def engine_processes(llm: AsyncLLM) -> list[int]:
    """Return the ids of the engine's processes, as far as they are of this front end's making."""
    resources = llm.engine_core.resources
    return _process_ids(resources.engine_manager, resources.coordinator)


def _process_ids(manager: Any, coordinator: Any) -> list[int]:
    """Return the engine cores, their workers, and the coordinator of data-parallel cores if any."""
    cores = [process.pid for process in getattr(manager, "processes", [])]
    workers = dict.fromkeys(worker for core in cores for worker in _workers(core))
    return cores + list(workers) + ([] if coordinator is None else [coordinator.proc.pid])


def _workers(core: int) -> list[int]:
    """Return an engine core's workers on this machine; Ray's are not its children.

    The engine does not outlive them, but it reports a death only when it has ended the others: on
    two GPUs that took nine seconds (vLLM 0.26).
    """
    children: list[psutil.Process] = []
    workers = []
    with contextlib.suppress(psutil.Error):  # it has just died
        process = psutil.Process(core)
        children = process.children()
        if process.ppid() != os.getpid():  # of the fork server, which has forked the workers, too
            children += psutil.Process(process.ppid()).children()
    for child in children:
        with contextlib.suppress(psutil.Error):
            if _WORKER in " ".join(child.cmdline()[:1]):
                workers.append(child.pid)
    return workers


class EngineCores:
    """The engine core processes that several front ends share, and their coordinator if any.

    Owned by the front end that launched them.
    """

    def __init__(self, engine_args: AsyncEngineArgs, front_ends: int, rust_clients: int) -> None:
        """Launch the processes and wait until the model is loaded. Blocks for all that time.

        ``rust_clients``: 1 if vLLM's Rust front end is the first client, before the ``front_ends``.
        Raises what vLLM raises when a process dies while it starts.
        """
        clients = rust_clients + front_ends
        # Rank -1: this configuration belongs to no front end, but to the engine.
        config = create_config(as_front_end(engine_args, -1, clients))
        addresses = _zmq_addresses(config, clients)
        if rust_clients:
            choose_scheduler(config)
            addresses.inputs += _zmq_addresses(config, _RUST_RESTARTS).inputs
            if not addresses.inputs[0].startswith("ipc:"):
                raise SettingsError('"server": "rust" needs all engines of a model on this machine')
        counts = {"num_api_servers": clients} if _LAUNCH_TAKES_COUNT else {}
        with engine_utils.launch_core_engines(
            config,
            executor_class(config),
            not engine_args.disable_log_stats,
            addresses,
            **counts,
        ) as launch:
            if _LAUNCH_TAKES_COUNT:  # then it yields a tuple
                self._manager, self._coordinator, addresses, _ = launch
            else:
                self._manager, self._coordinator = launch.engine_manager, launch.coordinator
                addresses = launch.addresses
        self.addresses = EngineAddresses(
            inputs=list(addresses.inputs[rust_clients:clients]),
            outputs=list(addresses.outputs[rust_clients:]),
            stats_update=self._coordinator and self._coordinator.get_stats_publish_address(),
            processes=_process_ids(self._manager, self._coordinator),
            rust_inputs=addresses.inputs[:rust_clients] + addresses.inputs[clients:],
            rust_output=addresses.outputs[0] if rust_clients else "",
        )

    def shutdown(self, timeout: float) -> None:
        """End the processes, the coordinator last; kill them after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for part in (self._manager, self._coordinator):
            if part is not None:
                part.shutdown(timeout=max(0.0, deadline - time.monotonic()))


def as_front_end(engine_args: AsyncEngineArgs, index: int, count: int) -> AsyncEngineArgs:
    """Return the engine arguments as seen from front end ``index`` of ``count``."""
    return replace(engine_args, _api_process_count=count, _api_process_rank=index)


def _zmq_addresses(config: Any, front_ends: int) -> Any:
    """Choose an input and an output address for each front end: IPC where all engines are here."""
    parallel = config.parallel_config
    local = parallel.local_engines_only or (
        parallel.data_parallel_size_local == parallel.data_parallel_size
    )

    def address() -> str:
        if local:
            return str(get_open_zmq_ipc_path())
        return str(get_tcp_uri(parallel.data_parallel_master_ip, get_open_port()))

    return engine_utils.EngineZmqAddresses(
        inputs=[address() for _ in range(front_ends)],
        outputs=[address() for _ in range(front_ends)],
    )

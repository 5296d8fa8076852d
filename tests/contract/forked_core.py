"""Have vLLM start processes from a fork server, as a front end does: those of an engine, or any.

A process of its own: the fork server comes before vLLM's import, and dies with this one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import sys
from typing import Any

import psutil

from triton_vllm.topology.fork_server import ForkServer
from triton_vllm.topology.stub_process import prepare_process
from triton_vllm.vllm_api.engine_process import preload

_CORE = """
import gc, time
import vllm.v1.engine.core as core, vllm.distributed.parallel_state as parallel_state
from vllm.v1.worker import gpu_worker
from vllm.v1.executor import multiproc_executor
worker = multiproc_executor.get_mp_context().Process(target=time.sleep, args=(60,))
worker.start()
for module in (core, parallel_state, gpu_worker):
    module.gc.unfreeze()
stub.send((worker.pid, gc.get_freeze_count()))
time.sleep(60)
"""


def main() -> None:
    """Print one JSON object, the last line: what was forked, and what was generated."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    prepare_process()
    fork_server = ForkServer("tiny", preload.MODULE, preload.engine_variables())
    from vllm.model_executor.models import registry

    from triton_vllm.vllm_api import api as vllm_api

    given = json.loads(sys.argv[1])
    runs = given.pop("runs")
    args = vllm_api.AsyncEngineArgs(**given)
    inspected_by_vllm: list[Any] = []
    registry._run_in_subprocess = inspected_by_vllm.append
    with vllm_api.inspected_in(fork_server):
        config = vllm_api.create_config(args)
    with vllm_api.cores_from(fork_server, config):
        said = asyncio.run(_generate(args, config)) if runs else _fork()
    said["inspected by vLLM"] = len(inspected_by_vllm)
    fork_server.stop()
    print(json.dumps(said), flush=True)


def _fork() -> dict[str, Any]:
    """Start a process as vLLM starts an engine core, and let it start one as a worker.

    ``frozen`` are the objects that the first one keeps from its garbage collector when vLLM does
    what it does before it ends.
    """
    from vllm.v1.engine import utils

    ours, theirs = multiprocessing.Pipe()
    process = utils.get_mp_context().Process(target=exec, args=(_CORE, {"stub": theirs}))
    process.start()
    worker, frozen = ours.recv()
    return {"forked": [_is_forked(process.pid), _is_forked(worker)], "frozen": frozen}


async def _generate(args: Any, config: Any) -> dict[str, Any]:
    from triton_vllm.vllm_api import api as vllm_api

    llm = vllm_api.create_engine(args, config)
    forked = [_is_forked(process) for process in vllm_api.engine_processes(llm)]
    sampling = vllm_api.SamplingParams(max_tokens=8, ignore_eos=True, temperature=0)
    tokens: list[int] = []
    async for output in llm.generate("Hello", sampling, "request"):
        tokens = list(output.outputs[0].token_ids)
    cpus = _cpus_of_threads(vllm_api.engine_processes(llm)[-1])
    vllm_api.shut_down(llm, 10)
    return {"forked": forked, "tokens": tokens, "cpus": cpus}


def _cpus_of_threads(process: int) -> list[tuple[int, ...]]:
    """Return the sets of CPUs to which threads of a process are bound."""
    threads = psutil.Process(process).threads()
    return sorted({tuple(sorted(os.sched_getaffinity(thread.id))) for thread in threads})


def _is_forked(process: int | None) -> bool:
    """Return whether a child of this process has started it."""
    parent = psutil.Process(process).parent()
    return parent is not None and parent.ppid() == os.getpid()


if __name__ == "__main__":
    main()

"""Have vLLM start a process from a fork server, as a front end does: an engine core, or any.

A process of its own: the fork server comes before vLLM's import, and dies with this one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

import psutil

from triton_vllm.topology.fork_server import ForkServer
from triton_vllm.topology.stub_process import prepare_process
from triton_vllm.vllm_api.engine_process import preload


def main() -> None:
    """Print one JSON object, the last line: was it forked, and what was generated."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    prepare_process()
    fork_server = ForkServer("tiny", preload.MODULE, preload.engine_variables())
    from triton_vllm.vllm_api import api as vllm_api

    given = json.loads(sys.argv[1])
    runs = given.pop("runs")
    args = vllm_api.AsyncEngineArgs(**given)
    config = vllm_api.create_config(args)
    with vllm_api.cores_from(fork_server, config):
        said = asyncio.run(_generate(args, config)) if runs else {"forked": _fork()}
    fork_server.stop()
    print(json.dumps(said), flush=True)


def _fork() -> bool:
    """Start a process in the way in which vLLM starts an engine core."""
    from vllm.v1.engine import utils

    process = utils.get_mp_context().Process(target=time.sleep, args=(60,))
    process.start()
    return _is_forked(process.pid)


async def _generate(args: Any, config: Any) -> dict[str, Any]:
    from triton_vllm.vllm_api import api as vllm_api

    llm = vllm_api.create_engine(args, config)
    core, *_ = vllm_api.engine_processes(llm)  # a vLLM for CPUs has a worker, too
    forked = _is_forked(core)
    sampling = vllm_api.SamplingParams(max_tokens=8, ignore_eos=True, temperature=0)
    tokens: list[int] = []
    async for output in llm.generate("Hello", sampling, "request"):
        tokens = list(output.outputs[0].token_ids)
    vllm_api.shut_down(llm, 10)
    return {"forked": forked, "tokens": tokens}


def _is_forked(process: int | None) -> bool:
    """Return whether a child of this process has started it."""
    parent = psutil.Process(process).parent()
    return parent is not None and parent.ppid() == os.getpid()


if __name__ == "__main__":
    main()

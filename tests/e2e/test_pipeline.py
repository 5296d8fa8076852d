"""An engine whose layers are divided between two workers, on the CPU's own vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_parallel import assert_answers_right, end, serve
from tests.e2e.triton_server import TritonServer

pytestmark = [pytest.mark.timeout(500), pytest.mark.slow]


def test_pipeline_parallel_workers(parallel: TritonServer, checkpoints: Path) -> None:
    """A layer in each of two workers.

    vLLM's CPU worker sets up the tensors between the stages only when it warms up a compiled model.
    A trace of it for a backend that compiles nothing is enough: no g++, no minutes.
    """
    serve(
        parallel,
        checkpoints,
        "stages",
        pipeline_parallel_size=2,
        enforce_eager=False,
        compilation_config={"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"},
    )
    assert 2 == len(parallel.processes("VLLM::Worker"))
    assert_answers_right(parallel, checkpoints, "stages")
    end(parallel, "stages")

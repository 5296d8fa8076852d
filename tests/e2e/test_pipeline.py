"""An engine whose layers are divided between two workers, on the CPU's own vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.test_parallel import (  # noqa: F401 (fixtures)
    assert_answers_right,
    checkpoints,
    end,
    serve,
    server,
)
from tests.e2e.tiny_models import TinyModels
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(500)


def test_pipeline_parallel_workers(
    server: TritonServer,  # noqa: F811
    tiny: TinyModels,
    checkpoints: Path,  # noqa: F811
) -> None:
    """A layer in each of two workers.

    vLLM's CPU worker sets up the tensors between the stages only when it warms up a compiled model.
    A trace of it for a backend that compiles nothing is enough: no g++, no minutes.
    """
    serve(
        server,
        checkpoints,
        "stages",
        pipeline_parallel_size=2,
        enforce_eager=False,
        compilation_config={"mode": "DYNAMO_TRACE_ONCE", "backend": "eager"},
    )
    assert 2 == len(server.processes("VLLM::Worker"))
    assert_answers_right(server, tiny, "stages")
    end(server, "stages")

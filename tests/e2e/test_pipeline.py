"""An engine whose layers are divided between two workers, on the CPU's own vLLM.

It can do so only where it compiles the model, which takes g++ and minutes on two cores: CI leaves
it out.
"""

from __future__ import annotations

import shutil
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

pytestmark = pytest.mark.timeout(900)


@pytest.mark.skipif(shutil.which("g++") is None, reason="vLLM compiles here, with g++")
def test_pipeline_parallel_workers(
    server: TritonServer,  # noqa: F811
    tiny: TinyModels,
    checkpoints: Path,  # noqa: F811
) -> None:
    """A layer in each of two workers."""
    serve(server, checkpoints, "stages", pipeline_parallel_size=2, enforce_eager=False)
    assert 2 == len(server.processes("VLLM::Worker"))
    assert_answers_right(server, tiny, "stages")
    end(server, "stages")

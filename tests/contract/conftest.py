"""vLLM warns of many things that are not ours: here a warning is no error."""

from __future__ import annotations

import os
import warnings

import pytest

# The newest vLLM's Python code comes from a wheel for CUDA, and the kernels here are the CPU's.
os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # Before the tests' own imports, which come when warnings are errors.
    import triton_vllm.vllm_api.api
    import triton_vllm.vllm_api.engine_process.cpu  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests of this folder pass in spite of warnings."""
    for item in items:
        if "contract" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))

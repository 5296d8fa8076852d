"""Why vLLM's kernels for the CPU cannot be loaded, as the loader says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triton_vllm.vllm_api.kernels import explained

DIED_OF = "AttributeError: '_OpNamespace' '_C' object has no attribute 'init_cpu_threads_env'"


@pytest.mark.timeout(120)
def test_a_missing_library_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A libnuma that is none stands in for none: the loader takes the first that it finds."""
    (tmp_path / "libnuma.so.1").touch()
    found = [str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")]
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, found)))
    told = explained(DIED_OF)
    assert told.startswith("vLLM's kernels cannot be loaded: ")
    assert "libnuma.so.1: " in told
    assert told.endswith(": install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora)")


@pytest.mark.timeout(120)
def test_kernels_that_can_be_loaded_are_not_the_cause() -> None:
    """Then the engine's own error is told, whatever becomes of the process that tries."""
    assert DIED_OF == explained(DIED_OF)

"""What is told of an engine that lacked vLLM's operators."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_vllm.vllm_api import kernels

DIED_OF = "AttributeError: '_OpNamespace' '_C' object has no attribute 'init_cpu_threads_env'"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a vLLM."""
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(kernels, "find_spec", lambda name: spec)
    return tmp_path


def test_a_kernel_that_cannot_be_loaded_is_the_cause(folder: Path) -> None:
    """In the loader's words, here of a file that is no library."""
    (folder / "_C.abi3.so").touch()
    path = folder / "_C.abi3.so"
    expected = f"vLLM's kernels cannot be loaded: {path}: file too short"
    assert expected == kernels.explained(DIED_OF)


def test_libnuma_is_named_with_its_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a slim image lacks it."""
    said = "libnuma.so.1: cannot open shared object file: No such file or directory"
    (folder / "_C.abi3.so").touch()
    run: Any = lambda *_, **__: SimpleNamespace(stdout=f"{said}\n")  # noqa: E731
    monkeypatch.setattr(subprocess, "run", run)
    hint = "install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora)"
    assert f"vLLM's kernels cannot be loaded: {said}: {hint}" == kernels.explained(DIED_OF)


@pytest.mark.parametrize("cause", [DIED_OF, "ValueError: No room"])
def test_any_other_cause_is_told_as_it_is(folder: Path, cause: str) -> None:
    """Without kernels for the CPU, and of an engine that died of something else."""
    if cause != DIED_OF:
        (folder / "_C.abi3.so").touch()
    assert cause == kernels.explained(cause)

"""Fixtures of the unit tests."""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

import tests.unit.fake_vllm  # noqa: F401  before what imports vllm_api
import triton_vllm
from tests.unit.fake_compiler import compile_as_told
from tests.unit.fakes import fake_pb_utils
from triton_vllm.limits import grammar_compiler
from triton_vllm.limits.grammar import GrammarSandbox
from triton_vllm.vllm_api.parameters import SamplingParser

set_hypothesis_home_dir(Path(__file__).parents[2] / ".cache/hypothesis")
# The same examples in every run, and no judgement of a busy machine's speed.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture
def model_py(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The file model.py, as Triton's stub imports it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_pb_utils)
    path = Path(triton_vllm.__file__).parents[1] / "model.py"
    spec = importlib.util.spec_from_file_location("model_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    package = logging.getLogger("triton_vllm")  # as it was before ``initialize``
    package.handlers, package.propagate = [], True


@pytest.fixture
def sampling() -> SamplingParser:
    """The parser of a model whose generation_config.json sets nothing."""
    return SamplingParser({})


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarSandbox]:
    """A limit for grammars of one second, with a compiler that does what the grammar says."""
    monkeypatch.setattr(grammar_compiler, "prepare", compile_as_told)
    sandbox = GrammarSandbox(1.0, lambda: "{}")
    yield sandbox
    sandbox.stop()
    assert multiprocessing.active_children() == []

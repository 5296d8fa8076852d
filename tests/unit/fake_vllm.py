"""Import this first: the package then finds fakes of the modules that import vLLM."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import triton_vllm.vllm_api
import triton_vllm.vllm_api.render
from tests.unit.fakes import fake_vllm_api

_fake: Any = fake_vllm_api()
sys.modules["triton_vllm.vllm_api.api"] = _fake
vars(triton_vllm.vllm_api)["api"] = _fake


def _lacking(*_: object, **__: object) -> Any:
    """Fail: a test that calls this needs a fake of its own."""
    raise AssertionError("needs vLLM")


for _name, _member in (
    ("parallel", "cluster_of"),
    ("structured_outputs", "StructuredOutputsCheck"),
    ("render.chat", "parse_chat_args"),
    ("render.renderers", "Renderers"),
):
    _module: Any = ModuleType(f"triton_vllm.vllm_api.{_name}")
    setattr(_module, _member, _lacking)
    sys.modules[_module.__name__] = _module

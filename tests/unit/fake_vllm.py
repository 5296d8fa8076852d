"""Import this first: the package then finds the fake ``vllm_api.api``, as here is no vLLM."""

from __future__ import annotations

import sys
from typing import Any

import triton_vllm.vllm_api
from tests.unit.fakes import fake_vllm_api

_fake: Any = fake_vllm_api()
sys.modules["triton_vllm.vllm_api.api"] = triton_vllm.vllm_api.api = _fake

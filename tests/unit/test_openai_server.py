"""What of the OpenAI-compatible server can be tested without vLLM."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import FakeEngineArgs
from triton_vllm.config.openai import OpenAISettings
from triton_vllm.config.settings import ModelSettings, ServingSettings
from triton_vllm.errors import SettingsError
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api.server import NoOpenAIServer, openai_server
from triton_vllm.topology.load_balancing import NoLoadBalancer


def make(openai: OpenAISettings | None) -> NoOpenAIServer:
    settings = ModelSettings(
        name="vllm",
        version="1",
        directory=Path("/m"),
        engine_args={"model": "m"},
        serving=ServingSettings(openai=openai),
    )
    admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
    drain = Drain(admission, {}, "vllm")
    slot: Any = None  # not looked at
    return openai_server(settings, FakeEngineArgs(), slot, admission, drain, AnswerCheck(), None)


def test_without_settings_there_is_no_server() -> None:
    """Nothing is imported, opened or paid for."""
    assert NoOpenAIServer is type(make(None))


def test_a_front_end_that_has_moved_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the vLLM at hand, those that are known, and the way out."""
    monkeypatch.setitem(sys.modules, "triton_vllm.vllm_api.openai_app", None)
    with pytest.raises(SettingsError) as raised:
        make(OpenAISettings(port=9000))
    line = str(raised.value)
    assert line.startswith('/m/vllm_engine_args.json: "serving.openai": vLLM 9.9.9 has its OpenAI')
    assert "elsewhere than vLLM 0.26 to 0.33" in line
    assert 1 == len(line.splitlines())

"""What model.py itself tells Triton, with everything behind it in place of stand-ins."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def loaded(model_py: ModuleType, engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the model after ``initialize``, around an engine that needs no vLLM."""
    serving = SimpleNamespace(max_tokens_per_response=1, cancellation_poll_seconds=1)
    placement = SimpleNamespace(instances=1)
    settings = SimpleNamespace(name="vllm", serving=serving, sender_threads=1, placement=placement)
    stand_ins = {
        "prepare_process": lambda: None,
        "ModelSettings": SimpleNamespace(from_triton=lambda args: settings),
        "load_engine": lambda settings, server: engine,
        "Host": SimpleNamespace(of=lambda *how: None),
        "watch_http_backlog": lambda *how: None,
        "SenderPool": lambda *how: SimpleNamespace(traffic=[]),
        "CancellationWatcher": lambda *how: None,
        "export_metrics": lambda *how: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(model_py, name, stand_in)
    model = model_py.TritonPythonModel()
    model.initialize({"model_config": "{}"})
    return model


def test_triton_is_told_whether_the_engine_serves(
    model_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down while the engine is, up when it is back: Triton 26.03 asks is_ready, by this name."""
    loop = SimpleNamespace(call_soon=lambda function: function())
    engine = SimpleNamespace(is_up=True, loop=loop)
    model = loaded(model_py, engine, monkeypatch)
    assert model.is_ready() is True
    engine.is_up = False
    assert model.is_ready() is False
    engine.is_up = True
    assert model.is_ready() is True

"""scripts/vllm_env.py: which packages an environment with some of vLLM's extras is given."""

from __future__ import annotations

import importlib.metadata
import runpy
from argparse import Namespace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/vllm_env.py"
REQUIRES = [
    "torch==2.13.0+cpu",
    "torchaudio",
    "mistral_common[image]>=1.11",
    'av; extra == "audio"',
    'mistral_common[audio]; extra == "audio"',
    'torchcodec; extra == "audio"',
    "tensorizer==2.10.1; extra == 'tensorizer'",
]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script's names, with a vLLM of these requirements installed and a pip that is noted."""
    metadata = Message()
    for extra in ("audio", "tensorizer", "video"):
        metadata["Provides-Extra"] = extra
    monkeypatch.setattr(importlib.metadata, "metadata", lambda package: metadata)
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: REQUIRES)
    names = runpy.run_path(str(SCRIPT))
    names["install"].__globals__.update(
        pip_install=lambda *arguments: names.setdefault("asked", []).append(arguments),
        pip=lambda *arguments: "",
        torch_index=lambda requirements: [],
    )
    return names


def asked_for(script: dict[str, Any], device: str, extras: str) -> list[tuple[str, ...]]:
    """Return what pip is asked to install."""
    script["install"](Namespace(device=device, vllm="1.0", extras=extras, numpy="any"))
    asked: list[tuple[str, ...]] = script["asked"]
    return asked


@pytest.mark.parametrize(
    ("extras", "more"),
    [
        ("", ()),
        ("audio", ("av", "mistral_common[audio]")),
        ("audio, tensorizer", ("av", "mistral_common[audio]", "tensorizer==2.10.1")),
        ("video", ()),
    ],
)
def test_extras_for_the_cpu(script: dict[str, Any], extras: str, more: tuple[str, ...]) -> None:
    """They are added to vLLM's own requirements, still without torch's parts for CUDA."""
    _, requirements = asked_for(script, "cpu", extras)
    assert ("torch==2.13.0+cpu", "mistral_common[image]>=1.11", *more) == requirements


def test_extras_for_cuda(script: dict[str, Any]) -> None:
    """Pip finds what they are."""
    assert [("vllm[audio,otel]==1.0",)] == asked_for(script, "cuda", "audio,otel")


def test_no_extras_for_cuda(script: dict[str, Any]) -> None:
    """VLLM alone."""
    assert [("vllm==1.0",)] == asked_for(script, "cuda", "")


def test_an_unknown_extra_is_refused(script: dict[str, Any]) -> None:
    """Pip would only warn of it."""
    with pytest.raises(script["UnfitError"], match="no extra audi: VLLM_EXTRAS may have audio, "):
        asked_for(script, "cpu", "audi")

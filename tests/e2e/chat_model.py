"""The tiny chat model, with LoRA adapters, a reasoning parser and a tool parser."""

from __future__ import annotations

import json

from tests.e2e.tiny_models import TinyModels

SECONDS = 300


def serve_chat(tiny: TinyModels) -> None:
    """Load it, unless it is there: for the tests of chat and of LoRA."""
    adapters = {
        "loud": str(tiny.checkpoints / "adapters/loud"),
        "quiet": str(tiny.checkpoints / "adapters/quiet"),
        "broken": str(tiny.checkpoints / "adapters"),
    }
    tiny.serve(
        "chat",
        {"1/multi_lora.json": json.dumps(adapters)},
        enable_lora="true",
        max_loras=2,
        max_lora_rank=8,
        reasoning_parser="qwen3",
        tool_call_parser="hermes",
        enable_auto_tool_choice=True,
    )

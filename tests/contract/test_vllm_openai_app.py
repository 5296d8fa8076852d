"""vLLM's OpenAI-compatible app, built by the vLLM at hand around everything real but the engine."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from vllm.renderers import renderer_from_config
from vllm.v1.engine.input_processor import InputProcessor

from tests.tiny_llama import make_tiny_llama
from triton_vllm.openai_api.arguments import parse_frontend_args
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api import openai_app as vllm_openai
from triton_vllm.vllm_api.arguments import parse_engine_args

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))
TOKENIZER = CACHE / "models/SmolLM2-135M-Instruct"


def engine_of(config: Any) -> Any:
    """Return an ``AsyncLLM`` as far as the app looks at it before anybody generates."""

    async def tasks() -> tuple[str, ...]:
        return ("generate",)

    async def healthy() -> None:
        """Say nothing: it is."""

    renderer = renderer_from_config(config)
    return SimpleNamespace(
        vllm_config=config,
        model_config=config.model_config,
        renderer=renderer,
        input_processor=InputProcessor(config, renderer),
        get_supported_tasks=tasks,
        check_health=healthy,
        errored=False,
        is_running=True,
    )


async def ask(app: Any) -> tuple[list[str], int, int, int]:
    """Return the models, and what the health, a tokenization and an unknown model get."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        models = (await client.get("/v1/models")).json()["data"]
        health = await client.get("/health")
        tokens = await client.post("/tokenize", json={"prompt": "one two"})
        unknown = await client.post("/v1/completions", json={"prompt": "a", "model": "no-such"})
    return (
        [model["id"] for model in models],
        health.status_code,
        tokens.json()["count"],
        unknown.status_code,
    )


def test_the_app_is_built_and_given_another_engine(tmp_path: Path) -> None:
    """It answers around the first engine as around the next, under the name as it was written."""
    if not TOKENIZER.exists():
        pytest.fail(f"{TOKENIZER} is missing: run scripts/test.sh")
    model = make_tiny_llama(tmp_path / "tiny", TOKENIZER)
    given = {"model": str(model), "dtype": "bfloat16", "enforce_eager": True}
    engine_args = parse_engine_args(given, "f", pytest.fail)
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    args = parse_frontend_args(tools, engine_args, "as/written", "f")
    config = vllm_api.create_config(engine_args)

    async def live_twice() -> list[Any]:
        front_end = vllm_openai.FrontEnd(args, engine_args)
        answers = []
        for _ in range(2):
            await front_end.attach(engine_of(config))
            answers.append(await ask(front_end.app))
            assert front_end.app.state.log_stats is False
        await front_end.close()
        return answers

    expected = (["as/written"], 200, 2, 404)
    assert [expected, expected] == asyncio.run(live_twice())

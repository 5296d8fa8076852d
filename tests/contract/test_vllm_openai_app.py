"""vLLM's OpenAI-compatible app, built by the vLLM at hand around everything real but the engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette._utils import get_route_path
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.renderers import renderer_from_config
from vllm.v1.engine.input_processor import InputProcessor

from tests.tiny_llama import make_tiny_llama
from triton_vllm.openai_api.arguments import parse_frontend_args
from triton_vllm.openai_api.middleware import route_path
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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model, with SmolLM2's tokenizer and chat template."""
    if not TOKENIZER.exists():
        pytest.fail(f"{TOKENIZER} is missing: run scripts/test.sh")
    return make_tiny_llama(tmp_path / "tiny", TOKENIZER)


def parsed(model: Path, given: dict[str, Any], **engine: Any) -> tuple[Any, Any]:
    """Return the engine's arguments, and the front end's."""
    base = {"model": str(model), "dtype": "bfloat16", "enforce_eager": True}
    engine_args = parse_engine_args({**base, **engine}, "f", pytest.fail)
    return engine_args, parse_frontend_args(given, engine_args, "as/written", "f")


def test_the_app_is_built_and_given_another_engine(model: Path) -> None:
    """It answers around the first engine as around the next, under the name as it was written."""
    tools = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    engine_args, args = parsed(model, tools)
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


Look = Callable[[Any], Awaitable[Any]]


def served(model: Path, look: Look, default_max_tokens: int = 0, **engine: Any) -> Any:
    """Return what ``look`` finds at an app that serves an engine."""
    engine_args, args = parsed(model, {}, **engine)
    args.api_key = [""]  # as openai_server sets it

    async def serve() -> Any:
        front_end = vllm_openai.FrontEnd(args, engine_args, default_max_tokens)
        await front_end.attach(engine_of(vllm_api.create_config(engine_args)))
        found = await look(front_end.app)
        await front_end.close()
        return found

    return asyncio.run(serve())


def test_vllm_does_not_check_the_key_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware has checked it, and may take others than VLLM_API_KEY."""
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")

    async def models(app: Any) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return int((await client.get("/v1/models")).status_code)

    assert 200 == served(model, models)


async def max_tokens(app: Any) -> tuple[Any, Any, Any]:
    """Return the defaults of ``max_tokens`` for chat and completions, and the upper limit."""
    chat = app.state.openai_serving_chat
    completion = CompletionRequest.model_validate({"prompt": "a"})
    default = chat.default_sampling_params.get("max_tokens")
    return default, completion.max_tokens, chat.override_max_tokens


@pytest.fixture
def completions_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put OpenAI's default back, which holds for the process."""
    field = CompletionRequest.model_fields["max_tokens"]
    monkeypatch.setattr(field, "default", field.default)


@pytest.mark.usefixtures("completions_default")
def test_the_default_of_max_tokens_holds_in_the_app(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a default, and not as an upper limit; completions have 16 without it."""
    assert (None, 16, None) == served(model, max_tokens)
    assert (7, 7, None) == served(model, max_tokens, 7)
    assert "does not hold" not in caplog.text


@pytest.mark.usefixtures("completions_default")
def test_the_models_own_limit_stays(model: Path) -> None:
    """That of the operator's overrides is an upper limit in vLLM's app."""
    overrides = {"max_new_tokens": 9}
    assert (7, 7, 9) == served(model, max_tokens, 7, override_generation_config=overrides)


def test_an_answer_has_the_cors_headers_of_the_app(model: Path) -> None:
    """The middleware's own answers, for the origins that the operator allows."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    _, args = parsed(model, {"allowed_origins": ["https://one.example"]})
    app = vllm_openai.with_cors(refuse, args)

    async def origins() -> list[str | None]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            asked = [
                await client.get("/v1/models", headers={"origin": origin})
                for origin in ("https://one.example", "https://two.example")
            ]
        assert [401, 401] == [answer.status_code for answer in asked]
        return [answer.headers.get("access-control-allow-origin") for answer in asked]

    assert ["https://one.example", None] == asyncio.run(origins())


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/models", "/apis/x", "/api", "/health"])
@pytest.mark.parametrize("root_path", ["", "/api", "/api/"])
def test_the_middleware_sees_the_path_that_the_router_sees(path: str, root_path: str) -> None:
    """Starlette's rule, which is private there."""
    expected = get_route_path({"path": path, "root_path": root_path})
    assert expected == route_path(path, root_path)

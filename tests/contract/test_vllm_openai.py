"""The front end's options and app, against the vLLM at hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.openai_api.arguments import REFUSED, parse_frontend_args
from triton_vllm.vllm_api import openai_app as vllm_openai
from triton_vllm.vllm_api.arguments import parse_engine_args

WHERE = '/models/vllm/vllm_engine_args.json: "serving.openai"'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in place of a model. The test reads no file of it."""
    return str(tmp_path_factory.mktemp("model"))


def parse(model: str, given: dict[str, Any], **engine: Any) -> argparse.Namespace:
    engine_args = parse_engine_args({"model": model, **engine}, WHERE, pytest.fail)
    return parse_frontend_args(given, engine_args, "as/written", WHERE)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"allowed_origins": ["https://a", "https://b"]}, ["https://a", "https://b"]),
        ({"allow_credentials": True}, True),
        ({"middleware": ["a.b", "c.d"]}, ["a.b", "c.d"]),
        ({"default_chat_template_kwargs": {"x": 1}}, {"x": 1}),
        ({"ssl_certfile": "/c"}, "/c"),
        ({"ssl_cert_reqs": 2}, 2),
        ({"uvicorn_log_level": "warning"}, "warning"),
        ({"disable_uvicorn_access_log": "true"}, True),
        ({"root_path": "/x"}, "/x"),
        ({"chat_template": None}, None),
    ],
    ids=json.dumps,
)
def test_options_are_those_of_vllm_serve(
    model: str, given: dict[str, Any], expected: object
) -> None:
    """A value becomes what vLLM's own command line would make of it."""
    (name,) = given
    assert expected == getattr(parse(model, given), name)


def test_adapters_are_models(model: str) -> None:
    """An object is vLLM's JSON form, a string its short one."""
    given = {"lora_modules": [{"name": "a", "path": "/a"}, "b=/b"]}
    modules = parse(model, given).lora_modules
    assert [("a", "/a"), ("b", "/b")] == [(m.name, m.path) for m in modules]


def test_engine_arguments_are_adopted(model: str) -> None:
    """The front end sees what the engine was given, and the model's name as it was written."""
    args = parse(model, {}, served_model_name="x", enable_log_requests=True)
    assert ("as/written", ["x"], True) == (
        args.model,
        args.served_model_name,
        args.enable_log_requests,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"chat_templat": "x"}, 'unknown key "chat_templat", did you mean "chat_template"?'),
        ({"api_key_env": "x"}, 'unknown key "api_key_env", did you mean "api_keys_env"?'),
        ({"uvicorn_log_level": "loud"}, "\"uvicorn_log_level\": invalid choice: 'loud'"),
        ({"max_log_len": "many"}, '"max_log_len": '),
        ({"allow_credentials": 3}, '"allow_credentials": must be a boolean, got 3'),
        ({"api_key": ["k"]}, '"api_key" is not allowed: keys do not belong in this file'),
        ({"reasoning_parser": "x"}, '"reasoning_parser" is an engine argument: it belongs beside'),
        (
            {"enable_auto_tool_choice": True},
            '"enable_auto_tool_choice" requires "tool_call_parser"',
        ),
        (
            {"enable_auto_tool_choice": True, "tool_call_parser": "hremes"},
            "invalid tool call parser: hremes",
        ),
        ({"chat_template": "/no/such/file"}, "/no/such/file"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(model: str, given: dict[str, Any], expected: str) -> None:
    """One line with the file, the object, the key, the reason and what came."""
    with pytest.raises(SettingsError) as raised:
        parse(model, given)
    assert str(raised.value).startswith(f"{WHERE}: ")
    assert expected in str(raised.value)
    assert 1 == len(str(raised.value).splitlines())


def test_what_is_refused_exists_somewhere() -> None:
    """The list of refused options is about options of vLLM."""
    known = vllm_openai.frontend_arg_types().keys()
    assert {"api_key", "uds", "tokens_only"} <= REFUSED.keys() & known
    assert "dp_supervisor_probe_timeout_s" in known


def test_the_options_for_uvicorn(model: str, tmp_path: Path) -> None:
    """They are options that uvicorn has, with vLLM's values."""
    import uvicorn

    options = vllm_openai.uvicorn_options(parse(model, {"uvicorn_log_level": "error"}))
    config = uvicorn.Config("x", **options)
    assert (5, "error") == (config.timeout_keep_alive, config.log_level)

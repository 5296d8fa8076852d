"""The object "openai": what is read, what is refused, and where the keys come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.config.openai import OpenAISettings
from triton_vllm.config.settings import ServingSettings
from triton_vllm.errors import SettingsError

WHERE = '/m/vllm_engine_args.json: "serving.openai"'
FILE = "/m/vllm_engine_args.json"


def read(**given: Any) -> OpenAISettings:
    openai = ServingSettings.from_json({"openai": {"port": 9000, **given}}, FILE).openai
    assert openai
    return openai


def test_no_object_opens_no_port() -> None:
    """The port is closed unless the operator configures it."""
    assert ServingSettings.from_json({}, "f").openai is None


def test_ours_and_vllms_keys_are_told_apart() -> None:
    """What is not ours is left to vLLM's parser, as it was written."""
    given = {
        "port": 9000,
        "host": "0.0.0.0",
        "api_keys_file": "/run/keys",
        "served_model_name": "a",
        "drain_timeout_seconds": 3,
        "enable_auto_tool_choice": True,
        "allowed_origins": ["https://example.com"],
    }
    expected = OpenAISettings(
        port=9000,
        host="0.0.0.0",
        api_keys_file="/run/keys",
        served_model_name=("a",),
        drain_timeout_seconds=3.0,
        frontend={
            "enable_auto_tool_choice": True,
            "allowed_origins": ["https://example.com"],
        },
    )
    assert expected == ServingSettings.from_json({"openai": given}, "f").openai


def test_the_defaults() -> None:
    """A port is all that is needed: loopback, no keys, ten seconds to drain."""
    assert OpenAISettings(port=9000) == read()
    assert ("127.0.0.1", 10.0) == (read().host, read().drain_timeout_seconds)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("yes", '" must be an object, got "yes"'),
        ({}, '.port" must be an integer from 1 to 65535, but it is missing'),
        ({"port": "80"}, '.port" must be an integer from 1 to 65535, got "80"'),
        ({"port": True}, '.port" must be an integer from 1 to 65535, got true'),
        ({"port": 0}, '.port" must be an integer from 1 to 65535, got 0'),
        ({"port": 1, "host": ""}, '.host" must be a string that is not empty, got ""'),
        ({"port": 1, "host": None}, '.host" must be a string that is not empty, got null'),
        (
            {"port": 1, "drain_timeout_seconds": -1},
            '.drain_timeout_seconds" must be a number from 0 to 3600, got -1',
        ),
        (
            {"port": 1, "drain_timeout_seconds": True},
            '.drain_timeout_seconds" must be a number from 0 to 3600, got true',
        ),
        (
            {"port": 1, "served_model_name": [1]},
            '.served_model_name" must be a string or an array of strings, got 1',
        ),
        ({"port": 1, "served_model_name": [""]}, '": "served_model_name" must not be empty'),
        (
            {"port": 1, "api_keys_env": "A", "api_keys_file": "/f"},
            '": "api_keys_env" and "api_keys_file" exclude each other',
        ),
        (
            {"port": 1, "drain_seconds": 3},
            '.drain_seconds" is now called "drain_timeout_seconds"',
        ),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str) else "",
)
def test_wrong_settings_are_refused_in_one_line(given: object, expected: str) -> None:
    """The line names the file, the object, the key and what came."""
    with pytest.raises(SettingsError) as raised:
        ServingSettings.from_json({"openai": given}, FILE)
    assert str(raised.value) == f'{FILE}: "serving.openai{expected}'


def test_keys_are_the_words_of_a_file(tmp_path: Path) -> None:
    """One key a line, or as the operator likes."""
    file = tmp_path / "keys"
    file.write_text("one\n two three\n")
    assert ("one", "two", "three") == read(api_keys_file=str(file)).read_api_keys(WHERE)


def test_keys_are_the_words_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is the one that is named; without a name, that of vllm serve."""
    monkeypatch.setenv("SOME_KEYS", "one two")
    monkeypatch.setenv("VLLM_API_KEY", "three")
    assert ("one", "two") == read(api_keys_env="SOME_KEYS").read_api_keys(WHERE)
    assert ("three",) == read().read_api_keys(WHERE)


def test_nobody_asks_for_a_key_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file nor a variable: everybody may come in."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert () == read().read_api_keys(WHERE)


def test_keys_that_are_promised_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing or empty source never means that everybody may come in."""
    monkeypatch.delenv("NO_SUCH", raising=False)
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    with pytest.raises(SettingsError, match=r'"api_keys_env": .* NO_SUCH holds no key'):
        read(api_keys_env="NO_SUCH").read_api_keys(WHERE)
    with pytest.raises(SettingsError, match=r'"api_keys_file": .*empty holds no key'):
        read(api_keys_file=str(empty)).read_api_keys(WHERE)
    with pytest.raises(SettingsError, match=r"absent cannot be read: No such file or directory"):
        read(api_keys_file=str(tmp_path / "absent")).read_api_keys(WHERE)

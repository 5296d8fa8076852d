"""Options for chat are checked when the model loads, if there are any; else they cost nothing."""

from __future__ import annotations

import sys
from argparse import Namespace
from types import ModuleType
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.vllm_api.render.chat_options import ChatOptions


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What vLLM's parser, which knows no tool parser but hermes, is given."""
    calls: list[Any] = []

    def parse_chat_args(given: dict[str, Any], engine_args: Any, where: str) -> Namespace:
        calls.append(given)
        if given.get("tool_call_parser", "hermes") != "hermes":
            raise SettingsError(f"{where}: no such parser")
        return Namespace(chat_template=given.get("chat_template"))

    module = ModuleType("triton_vllm.vllm_api.render.chat")
    module.parse_chat_args = parse_chat_args  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_vllm.vllm_api.render.chat", module)
    return calls


def engine_args(reasoning_parser: str = "") -> Namespace:
    return Namespace(reasoning_parser=reasoning_parser)


def test_no_options_are_parsed_when_somebody_asks(parsed: list[Any]) -> None:
    """A model that never chats does not pay for the import of vLLM's chat."""
    options = ChatOptions({}, engine_args(), "f")
    assert (False, None, []) == (options.are_given, options.template, parsed)
    assert options.args is options.args
    assert [{}] == parsed


@pytest.mark.parametrize(
    ("given", "reasoning"), [({"tool_call_parser": "hermes"}, ""), ({}, "qwen3")]
)
def test_options_are_parsed_at_once(
    parsed: list[Any], given: dict[str, Any], reasoning: str
) -> None:
    """And only once."""
    options = ChatOptions(given, engine_args(reasoning), "f")
    assert [given] == parsed
    assert options.are_given
    assert options.args is options.args
    assert [given] == parsed


def test_a_wrong_option_fails_the_load(parsed: list[Any]) -> None:
    """It is not found out by the first client."""
    with pytest.raises(SettingsError, match="f: no such parser"):
        ChatOptions({"tool_call_parser": "zeus"}, engine_args(), "f")


def test_a_template_of_the_operator(parsed: list[Any]) -> None:
    """A pooling model takes it, too."""
    assert "t" == ChatOptions({"chat_template": "t"}, engine_args(), "f").template

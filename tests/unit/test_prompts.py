"""Prompts of each kind, read from a request's inputs."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol import decode as decoding
from triton_vllm.protocol import prompts
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.outputs import CHAT_OUTPUTS, EMBEDDINGS, SCORES
from triton_vllm.protocol.requests import (
    ChatPrompt,
    EmbedRequest,
    MediaPrompt,
    PoolingOptions,
    ScoreRequest,
    TextPrompt,
)
from triton_vllm.vllm_api.parameters import PoolingParser, SamplingParser

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def pooling() -> PoolingParser:
    return PoolingParser()


def test_a_text_with_images(sampling: SamplingParser) -> None:
    """Each kind of media keeps its order; the text is echoed as any other."""
    request = decode(FakeRequest({"text_input": "<image>", "image": ["a", "b"]}), sampling)
    assert MediaPrompt("<image>", {"image": ["a", "b"]}) == request.prompt
    assert "<image>" == request.prefix


def test_no_images_are_none(sampling: SamplingParser) -> None:
    """An empty tensor is the same as none."""
    request = decode(FakeRequest({"text_input": "x", "image": []}), sampling)
    assert TextPrompt("x") == request.prompt


def test_a_chat(sampling: SamplingParser) -> None:
    """Messages and what goes along are JSON; reasoning and tool calls come by themselves."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    inputs = {
        "messages": json.dumps(MESSAGES),
        "tools": json.dumps(tools),
        "tool_choice": "auto",
        "chat_template_kwargs": '{"enable_thinking": false}',
    }
    request = decode(FakeRequest(inputs), sampling)
    options = {
        "tools": tools,
        "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert ChatPrompt(MESSAGES, options) == request.prompt
    assert (CHAT_OUTPUTS, "") == (request.outputs, request.prefix)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        (
            {"continue_final_message": True},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            {"continue_final_message": True, "add_generation_prompt": True},
        ),
        ({"continue_final_message": False}, {"continue_final_message": False}),
    ],
    ids=["no prompt", "continued", "both, as vLLM refuses it", "not continued"],
)
def test_the_end_of_a_chats_prompt(
    sampling: SamplingParser, given: dict[str, bool], expected: dict[str, bool]
) -> None:
    """A message that is continued is followed by no new turn, without its being said."""
    prompt = decode(FakeRequest({"messages": json.dumps(MESSAGES), **given}), sampling).prompt
    assert isinstance(prompt, ChatPrompt)
    assert expected == prompt.options


def test_a_tool_choice_by_name(sampling: SamplingParser) -> None:
    """An object names the function."""
    choice = {"type": "function", "function": {"name": "f"}}
    inputs = {"messages": json.dumps(MESSAGES), "tool_choice": json.dumps(choice)}
    prompt = decode(FakeRequest(inputs), sampling).prompt
    assert isinstance(prompt, ChatPrompt)
    assert {"tool_choice": choice} == prompt.options


def test_texts(pooling: PoolingParser) -> None:
    """They are answered with embeddings, and no text."""
    inputs = {"texts": ["a", "b"], "pooling_parameters": '{"dimensions": "16", "priority": 2}'}
    request = decode(FakeRequest(inputs), pooling)
    assert EmbedRequest(["a", "b"]) == request.prompt
    assert ((EMBEDDINGS,), "", False) == (request.outputs, request.text_output, request.stream)
    assert 16 == request.sampling_params.dimensions
    assert PoolingOptions(priority=2) == request.options


def test_pairs(pooling: PoolingParser) -> None:
    """They are answered with scores."""
    request = decode(FakeRequest({"queries": ["q"], "documents": ["a", "b"]}), pooling)
    assert (ScoreRequest(["q"], ["a", "b"]), (SCORES,)) == (request.prompt, request.outputs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
    ids=["text", "texts", "token ids", "several texts' token ids"],
)
def test_what_the_openai_front_end_sends(pooling: PoolingParser, given: Any, expected: Any) -> None:
    """Each form of OpenAI's ``input``; the answer is JSON in text_output."""
    asked = json.dumps({"input": given, "pooling_params": {"dimensions": [16]}})
    request = decode(FakeRequest({"embedding_request": asked}), pooling)
    assert EmbedRequest(expected, as_json=True) == request.prompt
    assert ("text_output", ()) == (request.text_output, request.outputs)
    assert 16 == request.sampling_params.dimensions


def test_an_embedding_request_is_parsed_once(
    pooling: PoolingParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a whole batch of texts."""
    parsed: list[str] = []

    def load(text: str, where: str) -> dict[str, Any]:
        parsed.append(where)
        value: dict[str, Any] = json.loads(text)
        return value

    for module in (prompts, decoding):
        monkeypatch.setattr(module, "load_json_object", load)
    asked = json.dumps({"input": "a", "pooling_params": {"dimensions": 16}})
    request = decode(FakeRequest({"embedding_request": asked}), pooling)
    assert 16 == request.sampling_params.dimensions
    assert ["embedding_request"] == parsed


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"text_input": "a"}, "text_input: not for this model; a request has one prompt: texts,"),
        ({}, "texts: missing"),
        ({"texts": []}, "texts: must have at least one element"),
        ({"texts": ["a"], "documents": ["b"]}, "documents: does not go with texts"),
        ({"texts": ["a"], "stream": True}, "stream: does not go with texts"),
        ({"queries": ["a"]}, "documents: missing"),
        ({"queries": ["a", "b"], "documents": ["c"]}, "queries: must be one, or as many as the 1"),
        ({"embedding_request": "7"}, "embedding_request: must be a JSON object"),
        ({"embedding_request": '{"input": []}'}, '"input" must be a string'),
        ({"embedding_request": '{"input": [1.5]}'}, '"input" must be a string'),
        ({"embedding_request": '{"input": [true]}'}, '"input" must be a string'),
        ({"embedding_request": '{"text": "a"}'}, 'unknown key "text"'),
        (
            {"embedding_request": '{"input": "a", "pooling_params": []}'},
            '"pooling_params" must be an object',
        ),
        (
            {"embedding_request": '{"input": "a", "pooling_params": {"dims": 3}}'},
            'embedding_request: "pooling_params": unknown key "dims"',
        ),
    ],
)
def test_wrong_requests_to_a_pooling_model(
    pooling: PoolingParser, inputs: dict[str, Any], expected: str
) -> None:
    """The error names the input."""
    with pytest.raises(RequestError, match=re.escape(expected)):
        decode(FakeRequest(inputs), pooling)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"messages": "[]"}, "messages: must be a JSON list of at least one object"),
        ({"messages": "[", "tools": "[]"}, "not JSON"),
        ({"messages": "[{}]", "tools": "{}"}, "tools: must be a JSON list"),
        ({"messages": "[{}]", "tool_choice": "sometimes"}, "tool_choice: must be auto, none,"),
        ({"messages": "[{}]", "chat_template_kwargs": "[]"}, "must be a JSON object"),
        (
            {"messages": "[{}]", "chat_template_kwargs": '{"continue_final_message": true}'},
            'chat_template_kwargs: "continue_final_message" is an input of its own',
        ),
        (
            {"messages": "[{}]", "chat_template_kwargs": '{"add_generation_prompt": false}'},
            'chat_template_kwargs: "add_generation_prompt" is an input of its own',
        ),
        ({"messages": "[{}]", "image": ["a"]}, "image: does not go with messages"),
        ({"input_ids": [1], "image": ["a"]}, "image: does not go with input_ids"),
        ({"text_input": "a", "return_reasoning": True}, "does not go with text_input"),
        (
            {"messages": "[{}]", "exclude_input_in_output": False},
            "exclude_input_in_output: must be true, or absent, without text_input",
        ),
    ],
)
def test_wrong_chats(sampling: SamplingParser, inputs: dict[str, Any], expected: str) -> None:
    """The error names the input."""
    with pytest.raises(RequestError, match=re.escape(expected)):
        decode(FakeRequest(inputs), sampling)


def test_vectors_are_sent_as_they_are() -> None:
    """A pooling model's answer needs no conversion."""
    from triton_vllm.protocol.delta import DeltaExtras

    rows = np.ones((2, 3), dtype=np.float32)
    assert rows is EMBEDDINGS.encode(DeltaExtras((), 0, embeddings=rows))

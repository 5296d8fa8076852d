"""Chat on the real server: the template, streams, tools and reasoning."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest

from tests.e2e.grpc_requests import ask, sampling
from tests.e2e.model_folder import ROOT
from tests.e2e.openai_port import client_of
from tests.e2e.tiny_models import TinyModels, deltas, serve_chat

pytestmark = pytest.mark.timeout(300)
MESSAGES = json.dumps([{"role": "user", "content": "Say something"}])
NO_THINKING = json.dumps({"enable_thinking": False})
SWITCH = {
    "type": "function",
    "function": {
        "name": "switch",
        "strict": True,  # else the grammar binds the call, and not its arguments
        "description": "Turn the light on or off",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module", autouse=True)
def _chat(tiny: TinyModels) -> None:
    serve_chat(tiny)


def said(tiny: TinyModels, inputs: dict[str, Any], **parameters: Any) -> dict[str, str]:
    """Return the outputs of one sequence, not streamed."""
    parameters = {"temperature": 0, "max_tokens": 16, "ignore_eos": True} | parameters
    response = tiny.ask("chat", {**inputs, "sampling_parameters": sampling(**parameters)})
    assert not response.error, response.error
    return {name: values[0] for name, values in response.outputs.items()}


def streamed(tiny: TinyModels, inputs: dict[str, Any], **parameters: Any) -> list[Any]:
    """Return the responses of a stream."""
    parameters = {"temperature": 0, "max_tokens": 16, "ignore_eos": True} | parameters
    inputs = {**inputs, "stream": True, "sampling_parameters": sampling(**parameters)}
    return ask(tiny.server, inputs, model="chat")


def test_messages_go_through_the_models_template(tiny: TinyModels) -> None:
    """They are answered as the prompt is that transformers makes of them."""
    flags = {"return_num_input_tokens": True}
    text = said(
        tiny,
        {"text_input": tiny.expected["prompt"], "exclude_input_in_output": True, **flags},
    )
    chat = said(tiny, {"messages": MESSAGES, "chat_template_kwargs": NO_THINKING, **flags})
    assert text["text_output"] == chat["text_output"]
    assert text["num_input_tokens"] == chat["num_input_tokens"]
    assert ("", "[]") == (chat["reasoning"], chat["tool_calls"])


def test_a_stream_says_the_same(tiny: TinyModels) -> None:
    """The deltas are the whole, and come in several responses."""
    inputs = {"messages": MESSAGES, "chat_template_kwargs": NO_THINKING}
    responses = streamed(tiny, inputs)
    assert said(tiny, inputs)["text_output"] == "".join(deltas(responses, "text_output"))
    assert len(responses) > 1  # how many depends on how fast they are read


def test_template_kwargs_reach_the_template(tiny: TinyModels) -> None:
    """The template's own variable adds five characters, of a token each."""
    inputs = {"messages": MESSAGES, "return_num_input_tokens": True}
    plain = said(tiny, inputs)["num_input_tokens"]
    kwargs = json.dumps({"shout": True})
    loud = said(tiny, {**inputs, "chat_template_kwargs": kwargs})["num_input_tokens"]
    assert int(plain) + len("LOUD ") == int(loud)


def test_an_assistants_turn_is_continued(tiny: TinyModels) -> None:
    """As on the OpenAI port, to the token."""
    messages: Any = [*json.loads(MESSAGES), {"role": "assistant", "content": "I say"}]
    how = {"continue_final_message": True, "add_generation_prompt": False}
    flags = {"return_num_input_tokens": True}
    kwargs = {"chat_template_kwargs": NO_THINKING}
    turn = said(tiny, {"messages": json.dumps(messages), **how, **kwargs, **flags})
    kwargs = {"chat_template_kwargs": json.loads(NO_THINKING)}
    with client_of(tiny.openai_port) as client:
        answer = client.chat.completions.create(
            model="chat",
            messages=messages,
            temperature=0,
            max_tokens=16,
            extra_body={"ignore_eos": True, **how, **kwargs},
        )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == int(turn["num_input_tokens"])
    assert answer.choices[0].message.content == turn["text_output"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_named_function_is_called(tiny: TinyModels, stream: bool) -> None:
    """tool_choice binds even a random model to the function and its parameters."""
    inputs = {
        "messages": MESSAGES,
        "tools": json.dumps([SWITCH]),
        "tool_choice": json.dumps({"type": "function", "function": {"name": "switch"}}),
        "chat_template_kwargs": NO_THINKING,
        "return_finish_reason": True,
    }
    # A grammar allows white space between JSON's signs, of which a random model may be fond.
    no_white_space = dict.fromkeys(tiny.expected["white_space"], -100)
    how = {"max_tokens": 100, "ignore_eos": False, "logit_bias": no_white_space}
    if stream:
        responses = streamed(tiny, inputs, **how)
        parts = [part for t in deltas(responses, "tool_calls") for part in json.loads(t)]
        assert {0} == {part["index"] for part in parts}
        name = "".join(part["function"].get("name", "") for part in parts)
        arguments = "".join(part["function"].get("arguments", "") for part in parts)
        reason = list(deltas(responses, "finish_reason"))[-1]
        content = "".join(deltas(responses, "text_output"))
    else:
        outputs = said(tiny, inputs, **how)
        (call,) = json.loads(outputs["tool_calls"])
        assert ("function", True) == (call["type"], bool(call["id"]))
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        reason, content = outputs["finish_reason"], outputs["text_output"]
    assert ("switch", {"on"}, "stop", "") == (name, json.loads(arguments).keys(), reason, content)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_reasoning_is_an_output_of_its_own(tiny: TinyModels, stream: bool) -> None:
    """A model that thinks, and comes to no end, fills `reasoning`, with the text of the prompt."""
    inputs = {"messages": MESSAGES}
    if stream:
        responses = streamed(tiny, inputs)
        reasoning = "".join(deltas(responses, "reasoning"))
        content = "".join(deltas(responses, "text_output"))
    else:
        outputs = said(tiny, inputs)
        reasoning, content = outputs["reasoning"], outputs["text_output"]
    kwargs = {"chat_template_kwargs": NO_THINKING}
    assert (said(tiny, inputs | kwargs)["text_output"], "") == (reasoning, content)


def test_flags_leave_the_parts_out(tiny: TinyModels) -> None:
    """return_reasoning and return_tool_calls are true unless a client says otherwise."""
    flags = {"return_reasoning": False, "return_tool_calls": False}
    assert {"text_output"} == said(tiny, {"messages": MESSAGES, **flags}).keys()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"messages": "[{"}, "messages: not JSON"),
        ({"messages": "{}"}, "messages: must be a JSON list of at least one object"),
        ({"messages": '[{"role": "user", "content": 7}]'}, "messages.0"),
        ({"messages": MESSAGES, "tools": '[{"type": "function"}]'}, "tools.0.function"),
        ({"messages": MESSAGES, "tool_choice": "maybe"}, "tool_choice: must be auto, none"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": '{"chat_template": "x"}'},
            "Refused request with untrusted chat template",
        ),
        ({"messages": MESSAGES, "text_input": "x"}, "messages: came beside text_input"),
        ({"text_input": "x", "tools": "[]"}, "tools: does not go with text_input"),
        ({"messages": MESSAGES, "image": "x"}, "image: does not go with messages"),
        ({"texts": ["a", "b"]}, "texts: not for this model"),
    ],
    ids=[
        "malformed",
        "no list",
        "wrong message",
        "wrong tool",
        "wrong choice",
        "own template",
        "two prompts",
        "tools without messages",
        "image beside messages",
        "texts",
    ],
)
def test_wrong_chats_are_refused(tiny: TinyModels, inputs: dict[str, str], expected: str) -> None:
    """The error says which input, and why."""
    assert expected in tiny.ask("chat", inputs).error


def test_a_schema_with_an_ignored_keyword_is_refused_as_the_document_shows(
    tiny: TinyModels,
) -> None:
    """Where the operator wants it; without the keyword the schema is served."""
    document = (ROOT / "docs/structured-outputs.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"  (curl \$REFUSING/.*)\n  ```\n\n  ```\n  (.*)\n", document)
    line, error = example
    body = json.loads(shlex.split(line)[-1])
    path = "v2/models/chat/generate"
    status, answer = tiny.server.post(path, body)
    assert (400, {"error": error}) == (status, json.loads(answer))
    outputs = json.loads(body["structured_outputs"])
    del outputs["json"]["dependentRequired"]
    body |= {"structured_outputs": json.dumps(outputs), "max_tokens": 4}
    assert 200 == tiny.server.post(path, body)[0]

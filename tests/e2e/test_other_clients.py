"""Clients written for Triton's own vLLM backend: their very requests, and how they read answers.

They are reproduced from Triton's OpenAI front end (``--backend vllm``) and LiteLLM's
provider ``triton``, both of August 2026; neither is installed here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.grpc_requests import Response, ask, generate
from tests.e2e.triton_server import TritonServer

FRANCE = "The capital of France is"


def ask_as_front_end(
    triton: TritonServer,
    *,
    stream: bool = False,
    echo: bool = False,
    logprobs: int | None = None,
    **sampling: Any,
) -> list[Response]:
    """Send what the front end makes of an OpenAI completion request."""
    # The fields of its request class that are not None, whatever the client sent.
    defaults = {"frequency_penalty": 0, "ignore_eos": False, "n": 1, "presence_penalty": 0}
    parameters = {**defaults, "temperature": 0.0, "top_p": 1, "max_tokens": 16, **sampling}
    if logprobs is not None:
        parameters["logprobs"] = logprobs
    inputs = {
        "return_logprobs": logprobs is not None,
        "text_input": FRANCE,
        "stream": stream,
        "exclude_input_in_output": not echo,
        "sampling_parameters": json.dumps(parameters),
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    responses = ask(triton, inputs)
    assert [] == [response.error for response in responses if response.error]
    return responses


def usage_of(responses: list[Response]) -> tuple[int, int]:
    """Add up tokens as the front end does: the prompt's once, the others of each response."""
    (prompt,) = responses[0].outputs["num_input_tokens"]
    return int(prompt), sum(int(r.outputs["num_output_tokens"][0]) for r in responses)


def test_the_front_ends_completion(triton: TritonServer) -> None:
    """One or two responses, the last of them final, with one text and the usage."""
    responses = ask_as_front_end(triton, max_tokens=4)
    assert 1 <= len(responses) <= 2
    assert responses[-1].final
    (text,) = responses[0].outputs["text_output"]
    assert (generate(triton, FRANCE, max_tokens=4), (5, 4)) == (text, usage_of(responses))


def test_the_front_ends_stream(triton: TritonServer) -> None:
    """Each response has one string of new text; the usage adds up over all of them."""
    responses = ask_as_front_end(triton, stream=True, max_tokens=4)
    text = "".join("".join(response.outputs["text_output"]) for response in responses)
    assert {1} == {len(response.outputs["text_output"]) for response in responses}
    assert (generate(triton, FRANCE, max_tokens=4), (5, 4)) == (text, usage_of(responses))
    assert [True] == [response.final for response in responses if response.final]


def test_the_front_ends_echo(triton: TritonServer) -> None:
    """Asked to echo, the front end sends exclude_input_in_output as false."""
    (response,) = ask_as_front_end(triton, echo=True, max_tokens=1)
    assert (FRANCE + " Paris",) == response.outputs["text_output"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_front_ends_logprobs(triton: TritonServer, stream: bool) -> None:
    """It sorts a position's tokens by rank, and takes the first one for the chosen."""
    responses = ask_as_front_end(triton, stream=stream, logprobs=2, max_tokens=3)
    positions = [p for r in responses for p in json.loads(r.outputs["logprobs"][0])]
    chosen = [min(p.values(), key=lambda entry: entry["rank"]) for p in positions]
    assert generate(triton, FRANCE, max_tokens=3) == "".join(e["decoded_token"] for e in chosen)
    assert all(isinstance(entry["logprob"], float) for entry in chosen)


def test_the_front_ends_tool_call(triton: TritonServer) -> None:
    """A tool that must be called becomes a schema in vLLM's object, as JSON with all its fields."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    constraint = {
        "json": json.dumps(schema),
        "regex": None,
        "choice": None,
        "grammar": None,
        "json_object": None,
        "disable_any_whitespace": False,
        "disable_additional_properties": False,
        "whitespace_pattern": None,
        "structural_tag": None,
        "_backend": None,
        "_backend_was_auto": False,
    }
    (response,) = ask_as_front_end(triton, structured_outputs=json.dumps(constraint))
    assert isinstance(json.loads(response.outputs["text_output"][0])["a"], bool)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_litellms_completion(triton: TritonServer, stream: bool) -> None:
    """The text, in one piece with the prompt, or in events without it."""
    parameters = {"max_tokens": 3, "temperature": 0}
    body = {"text_input": FRANCE, "parameters": parameters, "stream": stream}
    endpoint = "generate_stream" if stream else "generate"
    status, answer = triton.post(f"v2/models/vllm/{endpoint}", body)
    assert 200 == status
    if stream:
        events = [json.loads(e.removeprefix("data: ")) for e in answer.strip().split("\n\n")]
        text = FRANCE + "".join(event["text_output"] for event in events)
        assert {""} == {event.get("stop_reason", "") for event in events}
    else:
        text = json.loads(answer)["text_output"]
    assert FRANCE + generate(triton, FRANCE, max_tokens=3) == text

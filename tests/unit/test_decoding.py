"""Decoding of requests, under both sets of tensor names."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.outputs import LOGPROBS, NO_LOGPROBS, OUTPUTS, strings
from triton_vllm.protocol.requests import EngineOptions, TextPrompt, TokenPrompt
from triton_vllm.vllm_api.parameters import SamplingParser


def test_a_plain_request_is_answered_whole_with_its_prompt(sampling: SamplingParser) -> None:
    """text_input alone: not streamed, the prompt before the text, in text_output."""
    request = decode(FakeRequest({"text_input": "Hello"}), sampling)
    assert (TextPrompt("Hello"), False) == (request.prompt, request.stream)
    assert ("text_output", ()) == (request.text_output, request.outputs)
    assert ("Hello", False) == (request.prefix, request.text_from_start)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, True),
        ({"exclude_input_in_output": False}, True),
        ({"exclude_input_in_output": True}, False),
        ({"stream": False}, True),
        ({"stream": True}, False),
        ({"stream": True, "exclude_input_in_output": True}, False),
    ],
    ids=["default", "include", "exclude", "whole", "streamed", "streamed, exclude"],
)
def test_the_prompt_is_echoed(
    sampling: SamplingParser, inputs: dict[str, Any], expected: bool
) -> None:
    """A whole text begins with the prompt unless it is excluded; a stream's deltas never do."""
    request = decode(FakeRequest({"text_input": "p", **inputs}), sampling)
    assert ("p" if expected else "") == request.prefix


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_tutorials_names(sampling: SamplingParser, stream: bool) -> None:
    """PROMPT, STREAM and SAMPLING_PARAMETERS are answered in TEXT, from the prompt on."""
    inputs = {"PROMPT": "p", "STREAM": stream, "SAMPLING_PARAMETERS": '{"temperature": "0.1"}'}
    request = decode(FakeRequest(inputs), sampling)
    assert (TextPrompt("p"), stream) == (request.prompt, request.stream)
    assert ("TEXT", "p", True) == (request.text_output, request.prefix, request.text_from_start)
    assert 0.1 == request.sampling_params.temperature


@pytest.mark.parametrize(
    ("prompt", "asked", "expected"),
    [
        ("text_input", ["text_output", "TEXT"], "text_output"),
        ("PROMPT", ["text_output", "TEXT"], "TEXT"),
        ("text_input", [], "text_output"),
        ("PROMPT", [], "TEXT"),
        ("text_input", ["TEXT"], "TEXT"),
        ("PROMPT", ["text_output"], "text_output"),
        ("PROMPT", ["TEXT"], "TEXT"),
        ("text_input", ["finish_reason"], ""),
    ],
    ids=[
        *("all", "all, tutorial", "none", "none, tutorial", "crossed", "crossed back", "its own"),
        "no text",
    ],
)
def test_the_output_is_the_one_asked_for(
    sampling: SamplingParser, prompt: str, asked: list[str], expected: str
) -> None:
    """A client gets the output that it names, else the one that belongs to its input."""
    request = decode(FakeRequest({prompt: "p"}, outputs=asked), sampling)
    assert expected == request.text_output


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            {},
            "text_input: missing; a request has one prompt: text_input, input_ids, messages or "
            "PROMPT",
        ),
        ({"STREAM": True}, "text_input: missing"),
        ({"text_input": "a", "PROMPT": "b"}, "PROMPT: came beside text_input; a request has one"),
        ({"texts": ["a"]}, "texts: not for this model; a request has one prompt: text_input"),
        ({"text_input": []}, "text_input: must have one element, has 0"),
        ({"text_input": ["a", "b"]}, "text_input: must have one element, has 2"),
        ({"text_input": "a", "stream": [True, True]}, "stream: must have one element, has 2"),
        ({"text_input": b"ab\xff"}, "text_input: not UTF-8: byte 0xff at offset 2"),
        ({"text_input": b"ab\xc3"}, "text_input: not UTF-8: byte 0xc3 at offset 2"),
        (
            {"text_input": "a", "sampling_parameters": b"\xff"},
            "sampling_parameters: not UTF-8: byte 0xff at offset 0",
        ),
        ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters: not JSON: "),
        ({"PROMPT": "a", "SAMPLING_PARAMETERS": "{"}, "SAMPLING_PARAMETERS: not JSON: "),
        ({"text_input": "a", "sampling_parameters": '{"N": 1}'}, 'unknown key "N"'),
        (
            {"text_input": "a", "stream": True, "exclude_input_in_output": False},
            "exclude_input_in_output: must be true, or absent, when stream is true",
        ),
    ],
    ids=[
        "nothing",
        "no prompt",
        "two prompts",
        "for a pooling model",
        "empty tensor",
        "two elements",
        "two booleans",
        "not UTF-8",
        "half a character",
        "parameters not UTF-8",
        "malformed parameters",
        "malformed parameters, tutorial",
        "unknown parameter",
        "prompt in a stream",
    ],
)
def test_wrong_requests_are_refused(
    sampling: SamplingParser, inputs: dict[str, Any], expected: str
) -> None:
    """A request that cannot be served says which tensor, what came and what is allowed."""
    with pytest.raises(RequestError, match=re.escape(expected)):
        decode(FakeRequest(inputs), sampling)


HALF = r"\ud83d"  # of a surrogate pair, escaped inside the JSON of a tensor


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"sampling_parameters": f'{{"{HALF}": 1}}'}, f'sampling_parameters: unknown key "{HALF}"'),
        (
            {"sampling_parameters": f'{{"structured_outputs": {{"{HALF}": 1}}}}'},
            f'sampling_parameters: "structured_outputs": {HALF} is half of a surrogate pair',
        ),
        *(
            (
                {"sampling_parameters": json.dumps({name: value})},
                f'sampling_parameters: "{name}": {HALF} is half of a surrogate pair',
            )
            for name, value in {
                "stop": "a\ud83d",
                "lora_name": "\ud83d",
                "cache_salt": "\ud83d",
                "logit_bias": {"\ud83d": 1},
            }.items()
        ),
        (
            {"sampling_parameters": json.dumps({"stop": json.dumps(["\udc00"])})},
            None,
        ),
    ],
    ids=["a key", "a key within", "stop", "lora_name", "cache_salt", "a key of a map", "escaped"],
)
def test_half_of_a_surrogate_pair_is_refused_where_it_enters(
    sampling: SamplingParser, inputs: dict[str, Any], expected: str | None
) -> None:
    """JSON can escape what UTF-8 cannot encode; a text that shows the escape itself is a text."""
    request = FakeRequest({"text_input": "a", **inputs})
    if expected is None:
        assert r'["\udc00"]' == decode(request, sampling).sampling_params.stop
        return
    with pytest.raises(RequestError) as raised:
        decode(request, sampling)
    assert expected == str(raised.value)


@pytest.mark.parametrize("name", ["messages", "tools", "tool_choice", "chat_template_kwargs"])
def test_half_of_a_surrogate_pair_is_refused_in_a_chat(sampling: SamplingParser, name: str) -> None:
    """The error names the input."""
    given = json.dumps([{"role": "user", "content": "a"}])
    bad = json.dumps({"a": "\ud83d"})
    inputs = {"messages": given, name: bad if name[-1] != "s" or name[0] == "c" else f"[{bad}]"}
    with pytest.raises(RequestError, match=f"^{name}: .*is half of a surrogate pair"):
        decode(FakeRequest(inputs), sampling)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"request_id": b"a\xff"}, "id: not UTF-8: byte 0xff at offset 1"),
        ({"parameters": b'{"a\xff": 1}'}, "parameters: not UTF-8: byte 0xff at offset 3"),
    ],
    ids=["id", "parameters"],
)
def test_texts_beside_the_tensors_must_be_utf8(
    sampling: SamplingParser, what: dict[str, Any], expected: str
) -> None:
    """One line says what, and nothing of this server's files."""
    with pytest.raises(RequestError) as raised:
        decode(FakeRequest({"text_input": "a"}, **what), sampling)
    assert expected == str(raised.value)


@pytest.mark.parametrize(
    ("inputs", "parameters", "expected"),
    [
        ({}, '{"temperature": 0.5, "max_tokens": 3}', (0.5, 3)),
        ({}, '{"temperature": "0.5"}', (0.5, None)),
        ({}, '{"priority": 1, "triton_enable_empty_final_response": true}', (1.0, None)),
        ({"sampling_parameters": ""}, '{"temperature": 0.5}', (1.0, None)),
        ({"sampling_parameters": '{"max_tokens": 2}'}, '{"temperature": 0.5}', (1.0, 2)),
        ({}, "", (1.0, None)),
    ],
    ids=["numbers", "strings", "Triton's own", "empty tensor", "tensor wins", "none"],
)
def test_request_parameters_are_sampling_parameters(
    sampling: SamplingParser,
    inputs: dict[str, Any],
    parameters: str,
    expected: tuple[float, int | None],
) -> None:
    """Without the JSON tensor, the request's own parameters count, except those for Triton."""
    request = FakeRequest({"text_input": "a", **inputs}, parameters=parameters)
    params = decode(request, sampling).sampling_params
    assert expected == (params.temperature, params.max_tokens)


@pytest.mark.parametrize(
    "inputs",
    [
        {"text_input": "a", "STREAM": True},
        {"text_input": "a", "SAMPLING_PARAMETERS": "{}"},
        {"PROMPT": "a", "stream": True},
        {"PROMPT": "a", "exclude_input_in_output": True},
        {"PROMPT": "a", "return_num_output_tokens": True},
    ],
    ids=lambda inputs: "+".join(inputs),
)
def test_inputs_of_the_other_set_are_refused(
    sampling: SamplingParser, inputs: dict[str, Any]
) -> None:
    """An input that would have no effect is an error, which names those that have."""
    prompt, other = inputs
    with pytest.raises(RequestError, match=f"^{other}: does not go with {prompt}, allowed: .*, "):
        decode(FakeRequest(inputs), sampling)


def test_an_unknown_request_parameter_is_refused(sampling: SamplingParser) -> None:
    """A misspelt request parameter is said like one in the tensor."""
    request = FakeRequest({"text_input": "a"}, parameters='{"max_token": 1}')
    with pytest.raises(RequestError, match='parameters: unknown key "max_token", did you mean'):
        decode(request, sampling)


def test_request_ids_are_unique_and_hold_the_clients(sampling: SamplingParser) -> None:
    """Two requests with the same client id get different ids, each with the client's in it."""
    request = FakeRequest({"text_input": "a"}, request_id="42")
    first, second = (decode(request, sampling).request_id for _ in range(2))
    assert first != second
    assert "42" == first.rpartition("-")[0] == second.rpartition("-")[0]


def test_a_prompt_of_token_ids(sampling: SamplingParser) -> None:
    """input_ids stand in place of text_input; there is no text to repeat."""
    request = decode(FakeRequest({"input_ids": [1, 2, 3]}), sampling)
    assert (TokenPrompt([1, 2, 3]), "") == (request.prompt, request.prefix)
    with pytest.raises(RequestError, match="must be true, or absent, without text_input"):
        decode(FakeRequest({"input_ids": [1], "exclude_input_in_output": False}), sampling)


@pytest.mark.parametrize("flag", [output.flag for output in OUTPUTS])
@pytest.mark.parametrize("value", [True, False, None], ids=["true", "false", "absent"])
def test_an_output_is_sent_if_its_flag_is_true(
    sampling: SamplingParser, flag: str, value: bool | None
) -> None:
    """False means the same as no flag, whatever other outputs are requested."""
    inputs = {"text_input": "a"} | ({} if value is None else {flag: value})
    request = decode(FakeRequest(inputs), sampling)
    assert ([flag] if value else []) == [output.flag for output in request.outputs]


@pytest.mark.parametrize(
    ("logprobs", "expected"), [(None, 0), (0, 0), (2, 2)], ids=["absent", "0", "2"]
)
def test_a_cumulative_logprob_is_computed_where_it_is_asked_for(
    sampling: SamplingParser, logprobs: int | None, expected: int
) -> None:
    """It needs log probabilities; they themselves are sent where the parameter asks for them."""
    flags = {"return_cumulative_logprob": True, "return_logprobs": True}
    parameters = json.dumps({"logprobs": logprobs})
    inputs = {"text_input": "a", "sampling_parameters": parameters, **flags}
    request = decode(FakeRequest(inputs), sampling)
    assert expected == request.sampling_params.logprobs
    assert (LOGPROBS in request.outputs) == (logprobs is not None)
    assert (NO_LOGPROBS in request.outputs) == (logprobs is None)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        *((".", "."), ('["a", "b"]', ["a", "b"]), ("[", "["), ("[x]", "[x]")),
        *(("[1]", "[1]"), ("[]", "[]"), ('["a", 1]', '["a", 1]'), ("[" * 9999, "[" * 9999)),
    ],
    ids=[
        *("text", "list", "bracket", "brackets", "of numbers", "empty", "mixed", "many brackets"),
    ],
)
def test_a_list_among_request_parameters_is_json(
    sampling: SamplingParser, stop: str, expected: object
) -> None:
    """Triton carries no lists there; a text that is no list of stop strings stays a text."""
    request = FakeRequest({"text_input": "a"}, parameters=json.dumps({"stop": stop}))
    assert expected == decode(request, sampling).sampling_params.stop


@pytest.mark.parametrize("salt", ["[1]", '["a"]', "[]", "{}", "1", "true"])
def test_a_string_stays_a_string(sampling: SamplingParser, salt: str) -> None:
    """A parameter that takes strings only is not guessed at by its look."""
    request = FakeRequest({"text_input": "a"}, parameters=json.dumps({"cache_salt": salt}))
    assert salt == decode(request, sampling).options.cache_salt


def test_half_of_a_surrogate_pair_in_a_packed_list_is_refused(sampling: SamplingParser) -> None:
    """As in a tensor."""
    stop = json.dumps({"stop": json.dumps(["\ud83d"])})
    request = FakeRequest({"text_input": "a"}, parameters=stop)
    with pytest.raises(RequestError, match="half of a surrogate pair"):
        decode(request, sampling)


@pytest.mark.parametrize("as_tensor", [True, False], ids=["tensor", "parameters"])
def test_options_of_the_engine_stand_among_the_sampling_parameters(
    sampling: SamplingParser, as_tensor: bool
) -> None:
    """What concerns the engine and not the sampler is taken out, wherever it came."""
    given = json.dumps({"lora_name": "sql", "cache_salt": "a", "max_tokens": 3})
    inputs = {"text_input": "a"} | ({"sampling_parameters": given} if as_tensor else {})
    request = decode(FakeRequest(inputs, parameters="" if as_tensor else given), sampling)
    assert EngineOptions(lora_name="sql", cache_salt="a") == request.options
    assert 3 == request.sampling_params.max_tokens


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_any_text_survives_both_ways(texts: list[str]) -> None:
    """Texts of all alphabets become UTF-8, one element each."""
    actual = strings(texts)
    assert np.object_ == actual.dtype
    assert texts == [element.decode() for element in actual]


SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("context", "parameters", "expected"),
    [
        (None, "", {}),
        (None, json.dumps({"traceparent": PARENT}), {"traceparent": PARENT}),
        (None, json.dumps({"traceparent": 7}), {}),
        (
            json.dumps({"traceparent": SPAN, "tracestate": "a=b"}),
            json.dumps({"traceparent": PARENT}),
            {"traceparent": SPAN, "tracestate": "a=b"},
        ),
    ],
    ids=["none", "client's", "no string", "Triton's own span goes first"],
)
def test_the_trace_context_is_tritons_or_else_the_clients(
    context: str | None, parameters: str, expected: dict[str, str], sampling: SamplingParser
) -> None:
    """VLLM's span hangs below Triton's where Triton traces, else below the client's."""
    request = FakeRequest({"text_input": "a"}, parameters=parameters, trace_context=context)
    assert expected == decode(request, sampling).trace_headers

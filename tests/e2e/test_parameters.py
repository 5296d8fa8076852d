"""Sampling parameters on the real server: what clients send, and what they send wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.e2e.grpc_requests import ask, generate, sampling
from tests.e2e.triton_server import TritonServer

FRANCE = "The capital of France is"
SENTIMENT = "Classify the sentence: Harry Potter is great. Answer:"
CAR = {
    "type": "object",
    "properties": {"seats": {"type": "integer", "enum": [2, 4]}},
    "required": ["seats"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("as_string", [False, True], ids=["object", "JSON in a string"])
@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ({"choice": ["Positive", "Negative"]}, "Positive|Negative"),
        ({"regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"json": CAR}, r'\{\s*"seats"\s*:\s*[24]\s*\}'),
        ({"json": json.dumps(CAR)}, r'\{\s*"seats"\s*:\s*[24]\s*\}'),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json": {"type": "boolean"}, "disable_any_whitespace": "true"}, "true|false"),
    ],
    ids=["choice", "regex", "json", "json in a string", "grammar", "with an option"],
)
def test_structured_outputs(
    triton: TritonServer, constraint: dict[str, Any], expected: str, as_string: bool
) -> None:
    """Each kind of constraint is kept, written as an object or as JSON in a string."""
    given = json.dumps(constraint) if as_string else constraint
    text = generate(triton, SENTIMENT, structured_outputs=given, max_tokens=24)
    assert re.fullmatch(expected, text.strip())


def test_a_json_object(triton: TritonServer) -> None:
    """With json_object the text begins as an object."""
    text = generate(triton, SENTIMENT, structured_outputs={"json_object": "true"}, max_tokens=8)
    assert text.lstrip().startswith("{")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"stop": [" the", "."]}, " Paris"),
        ({"stop": "."}, " Paris"),
        ({"stop": ["."], "include_stop_str_in_output": True}, " Paris."),
        ({"stop": ["."], "include_stop_str_in_output": "true"}, " Paris."),
        ({"stop": ["."], "include_stop_str_in_output": "false"}, " Paris"),
        ({"max_tokens": "1", "temperature": "0"}, " Paris"),
        ({"max_tokens": 1, "min_tokens": None, "seed": None}, " Paris"),
        ({"max_tokens": 1, "bad_words": ["Paris"]}, " the"),
    ],
    ids=json.dumps,
)
def test_values_mean_what_they_say(
    triton: TritonServer, parameters: dict[str, Any], expected: str
) -> None:
    """Lists, booleans and their strings, numbers in strings, and null arrive as meant."""
    assert expected == generate(triton, FRANCE, **parameters)


@pytest.mark.parametrize("stop", [".", '[".", "!"]'], ids=["one", "a list"])
def test_stop_among_the_requests_own_parameters(triton: TritonServer, stop: str) -> None:
    """Where Triton carries no lists, a list comes as JSON in a string."""
    inputs = {"text_input": FRANCE, "exclude_input_in_output": True}
    parameters = {"stop": stop, "temperature": 0, "max_tokens": 8}
    (response,) = ask(triton, inputs, parameters=parameters)
    assert {"text_output": (" Paris",)} == response.outputs


@pytest.mark.parametrize("name", ["stop", "cache_salt"])
@pytest.mark.parametrize("text", ["[1]", "[]"])
def test_a_string_among_the_requests_own_parameters_stays_one(
    triton: TritonServer, name: str, text: str
) -> None:
    """A string that only looks like a list stays a string."""
    body = {"text_input": FRANCE, "parameters": {name: text, "max_tokens": 1, "temperature": 0}}
    status, said = triton.post("v2/models/vllm/generate", body)
    assert (200, f"{FRANCE} Paris") == (status, json.loads(said)["text_output"]), said


TRITONS = {
    "id": "42",
    "priority": 7,
    "timeout": 50_000_000,
    "sequence_id": 3,
    "sequence_start": True,
    "sequence_end": True,
    "binary_data_output": False,
    "triton_enable_empty_final_response": False,
}


@pytest.mark.parametrize("name", TRITONS)
def test_a_field_of_tritons_generate_endpoint(triton: TritonServer, name: str) -> None:
    """Each is allowed, and a request's id comes back."""
    body = {"text_input": FRANCE, name: TRITONS[name], "max_tokens": 1, "temperature": 0}
    status, said = triton.post("v2/models/vllm/generate", body)
    assert (200, f"{FRANCE} Paris") == (status, json.loads(said).get("text_output")), said
    assert ("42" if name == "id" else None) == json.loads(said).get("id")


def test_each_event_of_a_stream_has_the_requests_id(triton: TritonServer) -> None:
    """As Triton's generate extension says."""
    body = {"text_input": FRANCE, "id": "r-1", "stream": True, "max_tokens": 2}
    status, said = triton.post("v2/models/vllm/generate_stream", body)
    events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: ")]
    assert (200, {"r-1"}) == (status, {event.get("id") for event in events}), said


def test_a_named_output_needs_no_flag(triton: TritonServer) -> None:
    """A gRPC client that asks for one output gets that one."""
    inputs = {"text_input": FRANCE, "sampling_parameters": sampling(max_tokens=1)}
    (response,) = ask(triton, inputs, outputs=("finish_reason",))
    assert {"finish_reason": ("length",)} == response.outputs
    (response,) = ask(triton, inputs, outputs=("finish_reason", "reasoning"))
    assert response.error.startswith("reasoning: no output of a request with text_input, allowed:")


NAMES = {
    "max-tokens": ({"max-tokens": 3}, 'did you mean "max_tokens"?'),
    "OpenAI's": ({"max_completion_tokens": 3}, 'use "max_tokens"'),
    "TensorRT-LLM's": ({"stop_words": "x"}, 'use "stop"'),
    "vLLM's former": ({"guided_json": "{}"}, 'use "structured_outputs" with the key "json"'),
}


@pytest.mark.parametrize(("parameters", "expected"), NAMES.values(), ids=list(NAMES))
def test_another_servers_name_leads_to_ours(
    triton: TritonServer, parameters: dict[str, Any], expected: str
) -> None:
    """By meaning first, by spelling second; nothing is dropped in silence."""
    body = {"text_input": FRANCE, "parameters": {**parameters, "temperature": 0}}
    status, said = triton.post("v2/models/vllm/generate", body)
    assert (400, True) == (status, json.loads(said)["error"].endswith(expected)), said


HALF = r"\ud83d"
HALVES = {
    "a key": (f'{{"{HALF}": 1}}', f'sampling_parameters: unknown key "{HALF}"'),
    "a key within": (f'{{"structured_outputs": {{"{HALF}": 1}}}}', "half of a surrogate pair"),
    "lora_name": (f'{{"lora_name": "{HALF}"}}', "half of a surrogate pair"),
    "stop": (f'{{"stop": "{HALF}"}}', "half of a surrogate pair"),
}


@pytest.mark.parametrize(("parameters", "expected"), HALVES.values(), ids=list(HALVES))
def test_half_of_a_surrogate_pair_is_refused(
    triton: TritonServer, parameters: str, expected: str
) -> None:
    """The client gets the error, whatever text it quotes, and the next request succeeds."""
    inputs = {"text_input": FRANCE, "sampling_parameters": parameters}
    (response,) = ask(triton, inputs, seconds=10)
    assert expected in response.error
    assert " Paris" == generate(triton, FRANCE, max_tokens=1)


def test_an_undecodable_request_id_is_refused_in_one_line(triton: TritonServer) -> None:
    """The handler of errors reads the id, too; nothing of the server's files comes along."""
    body = b'{"id": "a\xff", "text_input": "a", "sampling_parameters": "{}"}'
    url = f"http://127.0.0.1:{triton.http_port}/v2/models/vllm/generate"
    answer = httpx.post(url, content=body, timeout=20)
    assert (400, {"error": "id: not UTF-8: byte 0xff at offset 1"}) == (
        answer.status_code,
        answer.json(),
    )


def test_a_grammar_and_tokens_that_exclude_each_other(triton: TritonServer) -> None:
    """It would fail each time, so the error does not advise a retry."""
    parameters = {"structured_outputs": {"choice": ["yes"]}, "allowed_token_ids": [30]}
    body = {"text_input": FRANCE, "sampling_parameters": sampling(**parameters)}
    status, said = triton.post("v2/models/vllm/generate", body)
    expected = '"allowed_token_ids": leave no token that the grammar allows'
    assert (400, True) == (status, json.loads(said)["error"].startswith(expected)), said


def test_beam_search(triton: TritonServer) -> None:
    """The n best sequences come, the best first, each with its log probability."""
    inputs = {
        "text_input": FRANCE,
        "exclude_input_in_output": True,
        "sampling_parameters": sampling(use_beam_search=True, n=2, max_tokens=3, ignore_eos=True),
        "return_cumulative_logprob": True,
        "return_num_output_tokens": True,
        "return_finish_reason": True,
    }
    (response,) = ask(triton, inputs, seconds=100)
    assert not response.error
    first, second = response.outputs["text_output"]
    assert first != second
    assert first.startswith(" Paris")
    better, worse = (float(each) for each in response.outputs["cumulative_logprob"])
    assert worse < better < 0
    assert ("3", "3") == response.outputs["num_output_tokens"]
    assert ("length", "length") == response.outputs["finish_reason"]


def test_a_beam_search_cannot_be_streamed(triton: TritonServer) -> None:
    """As in ``vllm serve``, there is nothing to stream before the search ends."""
    parameters = sampling(use_beam_search=True)
    inputs = {"text_input": FRANCE, "stream": True, "sampling_parameters": parameters}
    (response,) = ask(triton, inputs)
    assert 'sampling_parameters: "use_beam_search": cannot be streamed' == response.error


MISTAKES = {
    "an unknown key in an object": (
        {"structured_outputs": {"regexp": "a"}},
        'sampling_parameters: "structured_outputs": unknown key "regexp", did you mean "regex"?',
    ),
    "an unknown key in an object in a string": (
        {"structured_outputs": '{"regexp": "a"}'},
        'sampling_parameters: "structured_outputs": unknown key "regexp", did you mean "regex"?',
    ),
    "a wrong type in an object": (
        {"structured_outputs": {"choice": "a"}},
        'sampling_parameters: "structured_outputs": "choice": Input should be a valid list, got',
    ),
    "two constraints": ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "only use one"),
    "malformed JSON in a string": (
        {"structured_outputs": '{"regex": '},
        '"structured_outputs": not JSON: Expecting value (line 1, column 11)',
    ),
    "a malformed regular expression": ({"structured_outputs": {"regex": "[a"}}, ""),
    "a malformed grammar": ({"structured_outputs": {"grammar": "root ::= ("}}, ""),
    "a malformed schema": ({"structured_outputs": {"json": {"type": "car"}}}, ""),
    "a schema that is no JSON": ({"structured_outputs": {"json": "{"}}, ""),
    "no choice": ({"structured_outputs": {"choice": []}}, ""),
    "too many log probabilities": ({"logprobs": 1000}, "20"),
    "too many of the prompt": ({"prompt_logprobs": 1000}, "20"),
    "a token that is not there": ({"allowed_token_ids": [10**6]}, ""),
    "no allowed token": ({"allowed_token_ids": []}, ""),
    "a bias for a token that is not there": ({"logit_bias": {"10000000": 1}}, ""),
    "a number beyond 64 bits": ({"seed": 2**70}, '"seed": must fit into 64 bits, got 1180'),
    "a token id beyond 64 bits": ({"stop_token_ids": [2**70]}, "stop_token_ids"),
    "an empty bad word": ({"bad_words": [""]}, "empty string"),
    "beams beyond the log probabilities": ({"use_beam_search": True, "n": 50}, "20"),
    "a rank that is not there": ({"data_parallel_rank": 5}, "5"),
    "what the operator has not set up": (
        {"thinking_token_budget": 5},
        '"reasoning_parser" and/or "reasoning_config" in vllm_engine_args.json',
    ),
    "deep nesting": ({"structured_outputs": "[" * 5000}, "not JSON"),
}


@pytest.mark.parametrize(("parameters", "expected"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_clients_mistake_is_said_to_the_client(
    triton: TritonServer, parameters: dict[str, Any], expected: str
) -> None:
    """A mistake gets INVALID_ARG with one line that names it; the next request succeeds."""
    since = triton.log_size()
    body = {"text_input": FRANCE, "sampling_parameters": sampling(**parameters)}
    status, said = triton.post("v2/models/vllm/generate", body)
    assert (400, True) == (status, expected in json.loads(said)["error"]), said
    assert 0 < len(json.loads(said)["error"]) < 500
    assert "Traceback" not in triton.log.read_bytes()[since:].decode(errors="replace")
    assert " Paris" == generate(triton, FRANCE, max_tokens=1)


@pytest.mark.parametrize("ids", [[-1], [10**9], []], ids=["negative", "beyond", "none"])
def test_wrong_token_ids_are_refused(triton: TritonServer, ids: list[int]) -> None:
    """A token id that the model does not have is the client's mistake."""
    body = {"input_ids": ids, "temperature": 0, "max_tokens": 1}
    status, said = triton.post("v2/models/vllm/generate", body)
    assert 400 == status, said
    assert " Paris" == generate(triton, FRANCE, max_tokens=1)

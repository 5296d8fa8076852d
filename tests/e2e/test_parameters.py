"""Sampling parameters on the real server: what clients send, and what they send wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.e2e.triton_server import TritonServer, ask, generate, sampling

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
    """With json_object the text begins as an object, whatever the model would say."""
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
    "deep nesting": ({"structured_outputs": "[" * 5000}, "not JSON"),
}


@pytest.mark.parametrize(("parameters", "expected"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_clients_mistake_is_said_to_the_client(
    triton: TritonServer, parameters: dict[str, Any], expected: str
) -> None:
    """A mistake is INVALID_ARG, one line that says what; the next request is served."""
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

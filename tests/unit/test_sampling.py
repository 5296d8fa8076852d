"""Sampling parameters: conversion, defaults and errors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.fakes import FakeOutputKind, FakeStructuredOutputs
from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import load_json, load_json_object
from triton_vllm.protocol.requests import EngineOptions
from triton_vllm.vllm_api.parameters import SamplingParser


def parse(sampling: SamplingParser, given: dict[str, Any]) -> Any:
    params, _ = sampling.parse(given, stream=True, where="sampling_parameters")
    return params


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 0.5, 0.5),
        ("temperature", 0, 0.0),
        ("temperature", "0.1", 0.1),
        ("n", "2", 2),
        ("n", 2.0, 2),
        ("ignore_eos", "true", True),
        ("ignore_eos", False, False),
        ("max_tokens", None, None),
        ("stop", "a", "a"),
        ("stop", ["a", "b"], ["a", "b"]),
        ("stop", "[", "["),
        ("stop_token_ids", "[1, 2]", [1, 2]),
        ("logit_bias", {"7": 1.5}, {7: 1.5}),
        ("logit_bias", '{"7": "1.5"}', {7: 1.5}),
        ("structured_outputs", {"regex": "a+"}, FakeStructuredOutputs(regex="a+")),
        ("structured_outputs", '{"regex": "a+"}', FakeStructuredOutputs(regex="a+")),
    ],
    ids=[
        "number",
        "integer for a number",
        "number in a string",
        "integer in a string",
        "whole number",
        "boolean in a string",
        "boolean",
        "null",
        "one stop",
        "list of stops",
        "a bracket to stop at",
        "array in a string",
        "object",
        "object in a string",
        "nested object",
        "nested object in a string",
    ],
)
def test_values_are_converted_by_the_fields_type(
    sampling: SamplingParser, name: str, value: Any, expected: Any
) -> None:
    """A value becomes what the field of SamplingParams takes."""
    assert expected == getattr(parse(sampling, {name: value}), name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temprature": 0.1}, 'unknown key "temprature", did you mean "temperature"?'),
        ({"zzz": 0.1}, 'unknown key "zzz"'),
        ({"output_kind": 1}, 'unknown key "output_kind"'),
        ({"skip_clone": True}, 'unknown key "skip_clone"'),
        ({"output_text_buffer_length": 1}, 'unknown key "output_text_buffer_length"'),
        ({"temperature": "hot"}, '"temperature": .*valid number.*, got "hot"'),
        ({"temperature": float("nan")}, '"temperature": .*finite number.*, got NaN'),
        ({"temperature": "NaN"}, '"temperature": .*finite number.*, got "NaN"'),
        ({"temperature": -1}, "temperature must be non-negative, got -1"),
        ({"max_tokens": 1.5}, '"max_tokens": .*integer.*, got 1.5'),
        ({"stop": [1]}, '"stop": .*string.*, got .1.'),
        ({"n": [1]}, '"n": .*integer.*, got .1.'),
        ({"stop_token_ids": "[1,"}, '"stop_token_ids": not JSON: .*line 1, column 4'),
        ({"n": "x" * 200}, r', got "x{96}\.\.\.$'),
    ],
    ids=[
        "near miss",
        "far miss",
        "the engine's output_kind",
        "the engine's skip_clone",
        "the engine's buffer",
        "no number",
        "NaN",
        "NaN in a string",
        "out of range",
        "fraction",
        "wrong element",
        "array for a number",
        "malformed string",
        "long value",
    ],
)
def test_wrong_values_are_refused(
    sampling: SamplingParser, given: dict[str, Any], expected: str
) -> None:
    """A wrong key or value is one line with the tensor, the key, the reason and what came."""
    with pytest.raises(RequestError, match=expected) as raised:
        parse(sampling, given)
    assert str(raised.value).startswith("sampling_parameters: ")
    assert 1 == len(str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("stream", "expected"),
    [(True, FakeOutputKind.DELTA), (False, FakeOutputKind.FINAL_ONLY)],
    ids=["streamed", "whole"],
)
def test_streams_get_deltas(
    sampling: SamplingParser, stream: bool, expected: FakeOutputKind
) -> None:
    """A stream is asked for as deltas, the rest as one final output."""
    params, _ = sampling.parse({}, stream=stream, where="w")
    assert expected == params.output_kind


@pytest.mark.parametrize(
    ("defaults", "default_max_tokens", "given", "expected"),
    [
        ({}, 0, {}, (1.0, None)),
        ({"temperature": 0.6}, 0, {}, (0.6, None)),
        ({"temperature": 0.6}, 0, {"temperature": 0}, (0.0, None)),
        ({}, 20, {}, (1.0, 20)),
        ({}, 20, {"max_tokens": 5}, (1.0, 5)),
        ({}, 20, {"max_tokens": None}, (1.0, 20)),
        ({"max_tokens": 30}, 20, {}, (1.0, 20)),
    ],
    ids=[
        "vLLM's, up to the context",
        "the model's",
        "the request over the model's",
        "the operator's",
        "the request over the operator's",
        "null is the default",
        "the operator's over the model's",
    ],
)
def test_defaults(
    defaults: dict[str, Any],
    default_max_tokens: int,
    given: dict[str, Any],
    expected: tuple[float, int | None],
) -> None:
    """The request wins over the operator, the operator over the model's generation_config.json."""
    params = parse(SamplingParser(defaults, default_max_tokens), given)
    assert expected == (params.temperature, params.max_tokens)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 5), ({"max_tokens": 3}, 3), ({"max_tokens": 50}, 5), ({"max_tokens": None}, 5)],
    ids=["absent", "below", "above", "null"],
)
def test_the_operators_limit_holds(given: dict[str, Any], expected: int) -> None:
    """No request generates more than the operator's max_new_tokens."""
    assert expected == parse(SamplingParser({}, 0, 5), given).max_tokens


def test_options_come_apart_from_the_sampling_parameters(sampling: SamplingParser) -> None:
    """What vLLM takes beside its SamplingParams is checked by type and named like the rest."""
    given = {"lora_name": "sql", "priority": "3", "data_parallel_rank": 1, "n": 2}
    params, options = sampling.parse(given, stream=False, where="w")
    assert EngineOptions(lora_name="sql", priority=3, data_parallel_rank=1) == options
    assert 2 == params.n
    with pytest.raises(RequestError, match='unknown key "lora_nam", did you mean'):
        parse(sampling, {"lora_nam": "sql"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"regexp": "a"}, 'unknown key "regexp", did you mean "regex"?'),
        ({"zzz": "a"}, 'unknown key "zzz", allowed: json, regex'),
        ('{"regexp": "a"}', 'unknown key "regexp"'),
        ({"regex": 1}, '"regex": Input should be a valid string'),
    ],
    ids=["near", "far", "in a string", "type"],
)
def test_a_mistake_within_an_object_is_said(
    sampling: SamplingParser, given: Any, expected: str
) -> None:
    """Unknown keys, which pydantic would ignore, and wrong types are named with their place."""
    with pytest.raises(RequestError) as raised:
        parse(sampling, {"structured_outputs": given})
    assert str(raised.value).startswith('sampling_parameters: "structured_outputs": ' + expected)


def test_private_keys_of_a_whole_dataclass_are_dropped(sampling: SamplingParser) -> None:
    """Triton's OpenAI front end sends vLLM's object with all that is in it."""
    given = json.dumps({"json": "{}", "regex": None, "_backend": None, "_backend_was_auto": False})
    params = parse(sampling, {"structured_outputs": given})
    assert FakeStructuredOutputs(json="{}") == params.structured_outputs


@pytest.mark.parametrize("name", ["stop", "logit_bias", "structured_outputs", "priority"])
def test_what_beam_search_ignores_is_refused(sampling: SamplingParser, name: str) -> None:
    """By its name; the value that changes nothing passes, as clients send all they have."""
    values = {
        "stop": ["x"],
        "logit_bias": {"1": 1.0},
        "structured_outputs": {"regex": "a"},
        "priority": 1,
    }
    neutral: dict[str, Any] = {
        "stop": [],
        "logit_bias": {},
        "structured_outputs": None,
        "priority": 0,
    }
    with pytest.raises(RequestError, match=f'w: "{name}": does not go with "use_beam_search"'):
        sampling.parse({"use_beam_search": True, name: values[name]}, stream=False, where="w")
    params, _ = sampling.parse(
        {"use_beam_search": True, name: neutral[name]}, stream=False, where="w"
    )
    assert 1 == params.n


def test_greedy_beams_are_allowed(sampling: SamplingParser) -> None:
    """Temperature 0 with several sequences is wrong for sampling, and nothing to beam search."""
    given = {"use_beam_search": True, "temperature": 0, "n": 2}
    params, options = sampling.parse(given, stream=False, where="w")
    assert (1.0, 2, True) == (params.temperature, params.n, options.use_beam_search)
    with pytest.raises(RequestError, match='w: "use_beam_search": cannot be streamed'):
        sampling.parse(given, stream=True, where="w")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, str(2**70)], ids=["above", "below", "text"])
def test_numbers_fit_into_64_bits(sampling: SamplingParser, value: Any) -> None:
    """The engine cannot be told of larger ones."""
    with pytest.raises(RequestError, match='"seed": must fit into 64 bits'):
        parse(sampling, {"seed": value})


def test_requests_do_not_share_defaults(sampling: SamplingParser) -> None:
    """What one request sets, the next does not see."""
    parse(sampling, {"temperature": 0.2})
    assert 1.0 == parse(sampling, {}).temperature


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1,}', "not JSON: .*line 1, column [89]"),
        ('{\n "a" 1}', "not JSON: .*line 2, column 6"),
        ("", "not JSON: Expecting value .line 1, column 1"),
        ("[1]", "must be a JSON object, got .1."),
        ("0.5", "must be a JSON object, got 0.5"),
        ('{"a": NaN}', "not JSON: NaN is not allowed"),
        ('{"a": -Infinity}', "not JSON: -Infinity is not allowed"),
        ("[" * 100_000, "not JSON: "),
        ('{"a": ' + "1" * 5000 + "}", "not JSON: "),
    ],
    ids=[
        "trailing comma",
        "second line",
        "empty",
        "array",
        "number",
        "NaN",
        "Infinity",
        "too deep",
        "endless integer",
    ],
)
def test_malformed_json_is_said_with_its_place(text: str, expected: str) -> None:
    """What is no JSON object raises one line with the tensor and, where known, the place."""
    with pytest.raises(RequestError, match=expected) as raised:
        load_json_object(text, "sampling_parameters")
    assert str(raised.value).startswith("sampling_parameters: ")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(json_values)
def test_json_is_read_as_written(value: Any) -> None:
    """Any JSON value comes back unchanged."""
    assert value == load_json(json.dumps(value), "w")


@given(st.text() | st.text('[]{}:,"0123456789.eE+-\\ truefalsn'))
def test_any_text_is_json_or_refused(text: str) -> None:
    """No text of a client raises anything but RequestError."""
    with contextlib.suppress(RequestError):
        load_json_object(text, "w")


names = ["n", "temperature", "stop", "logit_bias", "ignore_eos", "structured_outputs"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(names), json_values)
def test_any_value_is_taken_or_refused(sampling: SamplingParser, name: str, value: Any) -> None:
    """No JSON value of a client raises anything but RequestError."""
    with contextlib.suppress(RequestError):
        parse(sampling, {name: value})


@pytest.mark.parametrize(("n", "limit"), [(1, 0), (16384, 0), (128, 128), (1, 1), ("2", 2)])
def test_as_many_sequences_as_allowed(n: Any, limit: int) -> None:
    """The operator's limit itself is allowed; 0 leaves it to vLLM."""
    assert int(n) == parse(SamplingParser({}, max_sequences=limit), {"n": n}).n


@pytest.mark.parametrize("n", [129, 16384, "129", 10**9])
def test_more_sequences_than_allowed_are_refused(n: Any) -> None:
    """With the operator's limit, its name, and what came."""
    expected = f'"n": must be at most 128 (max_n), got {n}'
    with pytest.raises(RequestError) as raised:
        parse(SamplingParser({}, max_sequences=128), {"n": n})
    assert f"sampling_parameters: {expected}" == str(raised.value)

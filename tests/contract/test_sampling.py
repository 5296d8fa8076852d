"""Sampling parameters, checked by the real SamplingParams."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import MEANINGS, load_json_object
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser

# What vLLM's completions API documents, and users of every supported version send.
WELL_KNOWN = {
    "n": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "stop_token_ids": [1, 2],
    "ignore_eos": True,
    "max_tokens": 20,
    "min_tokens": 2,
    "logprobs": 1,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "logit_bias": {3: 1.5},
    "bad_words": ["bad"],
}


@pytest.fixture(scope="module")
def sampling() -> SamplingParser:
    """The parser of a model whose generation_config.json sets nothing."""
    return SamplingParser({})


def parse(sampling: SamplingParser, given: dict[str, Any]) -> Any:
    params, _ = sampling.parse(given, stream=True, where="sampling_parameters")
    return params


def test_every_field_but_the_engines_own_is_known(sampling: SamplingParser) -> None:
    """A client may set each public field of SamplingParams, in every supported version."""
    own = {"output_kind", "skip_clone", "output_text_buffer_length"}
    own |= {"prompt_logprob_token_ids", "prompt_logprob_start"}
    public = {name for name in vllm_api.SamplingParams.__struct_fields__ if name[0] != "_"}
    for name in sorted(public - own):
        with pytest.raises(RequestError) as raised:
            parse(sampling, {name: object()})
        assert "unknown key" not in str(raised.value) or name == "extra_args"


@pytest.mark.parametrize("as_string", [False, True], ids=["typed", "strings"])
def test_the_well_known_parameters_arrive(sampling: SamplingParser, as_string: bool) -> None:
    """Each parameter arrives as sent, as JSON values or as strings."""
    sent = json.loads(json.dumps(WELL_KNOWN))
    if as_string:
        sent = {key: json.dumps(value) for key, value in sent.items()}
    params = parse(sampling, sent)
    assert WELL_KNOWN == {name: getattr(params, name) for name in WELL_KNOWN}


@pytest.mark.parametrize(
    ("stop", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ('["a"]', ['["a"]']), (None, [])],
    ids=["one", "several", "a string that looks like a list", "none"],
)
def test_stop_is_a_string_or_a_list(
    sampling: SamplingParser, stop: Any, expected: list[str]
) -> None:
    """One stop string is as good as a list of one."""
    assert expected == parse(sampling, {"stop": stop}).stop


@pytest.mark.parametrize(
    "given",
    [{"regex": "a+"}, '{"regex": "a+"}'],
    ids=["object", "string"],
)
def test_structured_outputs_regex(sampling: SamplingParser, given: Any) -> None:
    """Structured outputs come as an object or as JSON in a string."""
    assert "a+" == parse(sampling, {"structured_outputs": given}).structured_outputs.regex


def test_structured_outputs_schema(sampling: SamplingParser) -> None:
    """A JSON schema stays an object."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    params = parse(sampling, {"structured_outputs": {"json": schema}})
    assert schema == params.structured_outputs.json


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temprature": 1}, 'unknown key "temprature", did you mean "temperature"?'),
        ({"output_kind": "DELTA"}, 'unknown key "output_kind"'),
        ({"temperature": "hot"}, '"temperature": .*number.*, got "hot"'),
        ({"temperature": float("nan")}, '"temperature": .*finite number.*, got NaN'),
        ({"temperature": -1}, "temperature must be non-negative, got -1"),
        ({"top_p": 2}, r"top_p must be in \(0, 1\], got 2"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 1.5}, '"max_tokens": .*integer'),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seed": "x"}, '"seed": .*integer.*, got "x"'),
        ({"stop": [""]}, "stop cannot contain an empty string"),
        ({"stop": [1]}, '"stop": .*string'),
        ({"bad_words": "x"}, '"bad_words": .*list.*, got "x"'),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens must be less than or equal to max_tokens"),
        ({"temperature": 0, "n": 2}, "n must be 1 when using greedy sampling, got 2"),
        ({"structured_outputs": "a+"}, '"structured_outputs": '),
        ({"structured_outputs": {}}, '"structured_outputs": '),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "only use one kind"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused(
    sampling: SamplingParser, given: dict[str, Any], expected: str
) -> None:
    """A wrong key, type, range or combination is one line with what is allowed."""
    with pytest.raises(RequestError, match=expected) as raised:
        parse(sampling, given)
    assert str(raised.value).startswith("sampling_parameters: ")
    assert 1 == len(str(raised.value).splitlines())


def test_each_parameter_that_a_hint_offers_is_there(sampling: SamplingParser) -> None:
    """Other servers' names are translated to names that this vLLM has."""
    offered = {use.split('"')[1] for use in MEANINGS.values() if use.startswith('"')}
    assert set() == offered - set(sampling.parameters.names)
    assert set() == MEANINGS.keys() & set(sampling.parameters.names)


def test_nan_is_not_json() -> None:
    """NaN in a client's JSON is refused before it reaches vLLM."""
    with pytest.raises(RequestError, match="NaN is not allowed"):
        load_json_object('{"temperature": NaN}', "sampling_parameters")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_streams_get_deltas(sampling: SamplingParser, stream: bool) -> None:
    """A stream is asked for as deltas, the rest as one final output."""
    kinds = vllm_api.RequestOutputKind
    expected = kinds.DELTA if stream else kinds.FINAL_ONLY
    params, _ = sampling.parse({}, stream=stream, where="w")
    assert expected == params.output_kind


def test_without_max_tokens_the_context_is_filled(sampling: SamplingParser) -> None:
    """A request without max_tokens leaves it open, where vLLM's own default is 16."""
    assert 16 == vllm_api.SamplingParams().max_tokens
    assert parse(sampling, {}).max_tokens is None


def test_each_parameter_has_a_row_in_the_document(sampling: SamplingParser) -> None:
    """docs/requests.md has each parameter of this vLLM, and marks those of newer versions."""
    document = (Path(__file__).parents[2] / "docs/requests.md").read_text(encoding="utf-8")
    text = document.partition("\n## Parameters")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", text, re.MULTILINE))
    known = set(sampling.parameters.names)
    assert set() == known - rows.keys()
    assert set() == {name for name in rows.keys() - known if "newer vLLM" not in rows[name]}


@pytest.mark.parametrize("name", ["trust_remote_code", "model", "tokenizer", "enable_lora"])
def test_no_engine_argument_comes_from_a_client(sampling: SamplingParser, name: str) -> None:
    """A request cannot say what the operator's file says."""
    with pytest.raises(RequestError, match=f'unknown key "{name}"'):
        sampling.parse({name: "x"}, stream=False, where="parameters")

"""The names of other servers for what a request can ask for."""

from __future__ import annotations

import json

import pytest

from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.fields import MEANINGS, hint
from triton_vllm.protocol.schema import INPUTS
from triton_vllm.vllm_api.parameters import SamplingParser

KNOWN = ["max_tokens", "min_tokens", "stop", "stop_token_ids", "structured_outputs", "n", "top_k"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_completion_tokens", ', use "max_tokens"'),
        ("max-new-tokens", ', use "max_tokens"'),
        ("stop_words", ', use "stop"'),
        ("guided_json", ', use "structured_outputs" with the key "json"'),
        ("response_format", ', use "structured_outputs" with the key "json"'),
        ("beam_width", ', use "n" with "use_beam_search"'),
        ("runtime_top_k", ', use "top_k"'),
        ("functions", ', use the input "tools"'),
        ("max-tokens", ', did you mean "max_tokens"?'),
        ("min_token", ', did you mean "min_tokens"?'),
        ("random_seed", ""),
        ("zzz", ""),
    ],
)
def test_a_hint_is_by_meaning_first_by_spelling_second(name: str, expected: str) -> None:
    """What this kind of model does not have is not offered."""
    assert expected == hint(name, KNOWN)


def test_each_input_that_is_offered_is_there() -> None:
    """A hint must not name what Triton would refuse."""
    inputs = {f'the input "{tensor.name}"' for tensor in INPUTS}
    assert {use for use in MEANINGS.values() if use.startswith("the input")} <= inputs


@pytest.mark.parametrize("as_tensor", [True, False], ids=["tensor", "parameters"])
def test_the_error_of_an_unknown_key_has_the_hint(
    sampling: SamplingParser, as_tensor: bool
) -> None:
    """Wherever the parameters came."""
    given = json.dumps({"max_new_tokens": 3})
    inputs = {"text_input": "a"} | ({"sampling_parameters": given} if as_tensor else {})
    request = FakeRequest(inputs, parameters="" if as_tensor else given)
    with pytest.raises(RequestError, match='unknown key "max_new_tokens", use "max_tokens"'):
        decode(request, sampling)

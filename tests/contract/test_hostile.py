"""Malformed requests against the request decoder, with the real vLLM behind it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given

from tests.hostile import cases, right, tensors
from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError, one_line
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.requests import GenerationRequest
from triton_vllm.vllm_api.parameters import SamplingParser

CASES = int(os.environ.get("HOSTILE_CASES", "2000"))


@pytest.fixture(scope="module")
def sampling() -> SamplingParser:
    """A parser of the real ``SamplingParams``."""
    return SamplingParser({})


@pytest.mark.timeout(1800)
@cases(CASES)
@given(inputs=tensors())
def test_whatever_comes_is_a_request_or_an_error_that_says_why(
    sampling: SamplingParser, inputs: dict[str, Any]
) -> None:
    """For any input the decoder raises nothing but a RequestError of one readable line."""
    check(sampling, inputs)


@pytest.mark.timeout(1800)
@cases(CASES // 20)
@given(inputs=right())
def test_what_is_right_is_a_request(sampling: SamplingParser, inputs: dict[str, Any]) -> None:
    """The requests that the others are compared with, and made of, are such."""
    assert isinstance(decode(FakeRequest(inputs), sampling), GenerationRequest)


def check(sampling: SamplingParser, inputs: dict[str, Any]) -> None:
    """Decode; fail unless that ends as it should."""
    try:
        request = decode(FakeRequest(inputs), sampling)
    except RequestError as error:
        text = str(error)
        assert text
        assert text == one_line(text)
        assert text.encode()
    else:
        assert isinstance(request, GenerationRequest)

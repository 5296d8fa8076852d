"""What of a request belongs to Triton's own protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.fakes import FakeRequest
from triton_vllm.config.server_options import ServerOptions
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import Host, decode
from triton_vllm.protocol.outputs import LOGPROBS, NO_LOGPROBS, OUTPUT_TENSORS, OUTPUTS
from triton_vllm.vllm_api.parameters import SamplingParser

ALL = [tensor.name for tensor in OUTPUT_TENSORS]
DECLARED = Host(frozenset(ALL))
TRITONS = {
    "id": "42",
    "priority": 7,
    "timeout": 9_000_000,
    "sequence_id": 3,
    "sequence_start": True,
    "sequence_end": True,
    "headers": "x",
    "binary_data_output": False,
    "triton_enable_empty_final_response": True,
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def parameters(sampling: SamplingParser, own: Mapping[str, Any], host: Host = DECLARED) -> Any:
    request = FakeRequest(
        {"text_input": "a"}, request_id="42", parameters=json.dumps(own), outputs=ALL
    )
    return decode(request, sampling, host)


@pytest.mark.parametrize("name", TRITONS)
def test_a_field_of_tritons_protocol_is_no_parameter_of_the_model(
    sampling: SamplingParser, name: str
) -> None:
    """The generate endpoint passes them all on, and each is allowed."""
    request = parameters(sampling, {name: TRITONS[name], "max_tokens": 3})
    assert 3 == request.sampling_params.max_tokens
    assert request.options.priority == 0
    assert (9.0 if name == "timeout" else None) == request.options.timeout_seconds


@pytest.mark.parametrize("key", ["id", "triton", "traceparents", "Sequence_id", "outputs"])
def test_what_only_looks_like_one_is_unknown(sampling: SamplingParser, key: str) -> None:
    """An id that is not the request's came inside "parameters", where there is none."""
    with pytest.raises(RequestError, match=f'^parameters: unknown key "{key}"'):
        parameters(sampling, {key: "x"})


@pytest.mark.parametrize("value", ["soon", True, -1, 1.5])
def test_a_timeout_is_microseconds(sampling: SamplingParser, value: Any) -> None:
    """Over gRPC Triton checks it; its generate endpoint does not."""
    with pytest.raises(RequestError, match="timeout: must be microseconds"):
        parameters(sampling, {"timeout": value})


@pytest.mark.parametrize(
    ("patterns", "key", "is_header"),
    [
        ((), "x-request-id", False),
        ((), "authorization", False),
        (("x-.*",), "x-request-id", True),
        (("X-.*",), "x-request-id", True),
        (("(?-i)X-.*",), "x-request-id", False),
        (("a", "user"), "user-agent", True),
        ((r"\pN",), "user-agent", True),
        ((".*",), "max-tokens", False),
        ((".*",), "Max_Tokens", False),
        ((".*",), "max-tokes", True),
    ],
    ids=[
        *("none forwarded", "none forwarded, a known header", "forwarded", "in another case"),
        *("in this case only", "a part matches", "not Python's", "a parameter with a hyphen"),
        *("a parameter in capitals", "anything else"),
    ],
)
def test_a_header_is_what_the_server_forwards(
    sampling: SamplingParser, patterns: tuple[str, ...], key: str, is_header: bool
) -> None:
    """Only the operator's patterns let Triton put headers among the parameters."""
    host = Host(frozenset(ALL), patterns)
    if is_header:
        request = parameters(sampling, {key: "x", "max_tokens": 3}, host)
        assert 3 == request.sampling_params.max_tokens
    else:
        with pytest.raises(RequestError, match=f'^parameters: unknown key "{key}"'):
            parameters(sampling, {key: "x"}, host)


def test_a_hyphen_in_a_parameter_is_told(sampling: SamplingParser) -> None:
    """It is not dropped in silence."""
    with pytest.raises(RequestError, match='"max-tokens", did you mean "max_tokens"'):
        parameters(sampling, {"max-tokens": 3})


def test_the_host_is_read_from_what_triton_says() -> None:
    """The model's configuration and the server's command line."""
    config = json.dumps({"output": [{"name": "text_output"}, {"name": "scores"}]})
    expected = Host(frozenset({"text_output", "scores"}), ("x",))
    assert expected == Host.of(config, ServerOptions(header_patterns=("x",)))


def named(sampling: SamplingParser, prompt: str, *outputs: str, **inputs: Any) -> Any:
    value = '[{"role": "user", "content": "a"}]' if prompt == "messages" else "a"
    request = FakeRequest({prompt: value, **inputs}, outputs=outputs)
    return decode(request, sampling, DECLARED)


@pytest.mark.parametrize("prompt", ["text_input", "PROMPT", "messages"])
@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output.tensor.name)
def test_an_output_that_is_named_is_asked_for(
    sampling: SamplingParser, prompt: str, output: Any
) -> None:
    """It needs no flag, and a flag that is false does not take it away."""
    flags = {} if prompt == "PROMPT" else {output.flag: False}
    for given in ({}, flags):
        sent = named(sampling, prompt, output.tensor.name, **given).outputs
        expected = NO_LOGPROBS if output is LOGPROBS else output
        assert expected in sent


def test_what_a_named_output_needs_is_computed(sampling: SamplingParser) -> None:
    """As with its flag."""
    request = named(sampling, "text_input", "cumulative_logprob")
    assert 0 == request.sampling_params.logprobs


@pytest.mark.parametrize("outputs", [ALL, [*ALL, "more"]], ids=["all", "all and more"])
def test_where_no_output_is_named_none_is_asked_for(
    sampling: SamplingParser, outputs: list[str]
) -> None:
    """Triton then names all that the model declares."""
    assert () == named(sampling, "text_input", *outputs).outputs


@pytest.mark.parametrize(
    ("prompt", "output"),
    [("text_input", "reasoning"), ("text_input", "scores"), ("messages", "embeddings")],
)
def test_an_output_that_cannot_come_is_refused(
    sampling: SamplingParser, prompt: str, output: str
) -> None:
    """The error names it, and those that can."""
    expected = f"^{output}: no output of a request with {prompt}, allowed: TEXT, text_output, "
    with pytest.raises(RequestError, match=expected):
        named(sampling, prompt, output, "text_output")

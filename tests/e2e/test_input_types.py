"""The same value over Triton's generate and over gRPC: what each takes, and who refuses it."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.load import Connection, Refused, infer_request
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(300)

NOT_A_TYPE = "has invalid type"
NO_INTEGER = "non-signed-integer"
FINITE = "should be a finite number"


@pytest.fixture
def server(crowded: TritonServer) -> TritonServer:
    """The server of the group."""
    return crowded


def post(server: TritonServer, body: bytes, path: str = "generate") -> httpx.Response:
    url = f"http://127.0.0.1:{server.http_port}/v2/models/vllm/{path}"
    headers = {"Content-Type": "application/json"}
    return httpx.post(url, content=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    ("rest", "status", "expected"),
    [
        (b'"text_input": "a\\u0000b"', 200, "a\\u0000b"),
        (b'"text_input": "a\xff"', 400, "not UTF-8: byte 0xff at offset 1"),
        (b'"text_input": "a\\ud800"', 500, "surrogate pair"),
        (b'"text_input": 5', 500, "non-string"),
        (b'"input_ids": ["5"]', 500, NO_INTEGER),
        (b'"input_ids": [5.0]', 500, NO_INTEGER),
        (b'"input_ids": [9223372036854775808]', 500, NO_INTEGER),
        (b'"input_ids": [9223372036854775807]', 400, "out of vocabulary"),
        (b'"text_input": "a", "stream": 0', 500, "non-boolean"),
        (b'"text_input": "a", "temperature": NaN', 400, FINITE),
        (b'"text_input": "a", "temperature": "inf"', 400, FINITE),
        (b'"text_input": "a", "temperature": 1e400', 500, "Number too big"),
        (b'"text_input": "a", "temperature": null', 400, NOT_A_TYPE),
        (b'"text_input": "a", "stop": ["b"]', 400, NOT_A_TYPE),
        (b'"text_input": "a", "stop": "\\u0000b"', 400, "cannot contain an empty string"),
        (b'"text_input": "a", "max_tokens": "3.0"', 200, "text_output"),
        (b'"text_input": "a", "max_tokens": 3.5', 400, "fractional part"),
        (b'"text_input": "a", "max_tokens": 18446744073709551616', 400, "exceeded maximum size"),
        (b'"text_input": "a", "sampling_parameters": {"n": 1}', 500, "non-string"),
    ],
    ids=lambda value: value.decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_a_value_over_generate(
    server: TritonServer, rest: bytes, status: int, expected: str
) -> None:
    """500 is Triton's word for JSON of a wrong type, 400 the model's."""
    answer = post(server, b"{" + rest + b"}")
    assert (status, True) == (answer.status_code, expected in answer.text), answer.text


@pytest.mark.parametrize(
    ("name", "kind", "value", "expected"),
    [
        ("temperature", "double_param", float("nan"), FINITE),
        ("temperature", "string_param", "inf", FINITE),
        ("max_tokens", "double_param", 3.0, ""),
        ("max_tokens", "string_param", "3.0", ""),
        ("max_tokens", "double_param", 3.5, "fractional part"),
        ("max_tokens", "uint64_param", 3, "invalid value type"),
        ("stop", "string_param", "\0b", "cannot contain an empty string"),
    ],
)
def test_a_value_over_grpc(
    server: TritonServer, name: str, kind: str, value: Any, expected: str
) -> None:
    """As over generate, but for unsigned integers, which Triton takes for no parameter."""
    message = infer_request({"text_input": b"a"})
    setattr(message.parameters[name], kind, value)
    with Connection(server) as connection:
        end = connection.ask(message)
    assert expected in end.error if isinstance(end, Refused) else not expected


def test_kserves_own_requests_are_refused(server: TritonServer) -> None:
    """Triton's infer endpoint and its ModelInfer take no model that streams."""
    answer = post(server, b'{"inputs": []}', "infer")
    assert (501, True) == (answer.status_code, "decoupled transaction policy" in answer.text)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(infer_request({"text_input": b"a"}))
    assert "decoupled transaction policy" in str(raised.value)

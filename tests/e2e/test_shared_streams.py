"""Requests on one connection, each on its own gRPC stream, as the reliability page advises."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.echo_server import Server, serving
from tests.e2e.load import infer_request, text_of

pytestmark = pytest.mark.timeout(120)

WORDS = " ".join(["word"] * 3000)
STREAMED = {"stream": True, "exclude_input_in_output": True}
ANSWER = {"text_input": WORDS.encode(), **STREAMED}
REFUSED = {"text_input": b"error: bad prompt", **STREAMED}


@pytest.fixture
def server(stub_prefix: Path, tmp_path: Path) -> Iterator[Server]:
    """A server for one test."""
    with serving(tmp_path, stub_prefix) as running:
        yield running


@pytest.fixture
def send(server: Server) -> Iterator[Any]:
    """Send one request on a new stream of the connection: send(request) -> responses."""
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield lambda request: stub.ModelStreamInfer(iter([request]), timeout=50)


def test_with_streams_of_their_own_all_are_answered(server: Server, send: Any) -> None:
    """A long answer is complete while requests that the model refuses get their errors."""
    ends = []
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(lambda: list(send(infer_request(ANSWER))))
        while not answering.done():
            ends.append(list(send(infer_request(REFUSED))))
        answer = answering.result()
    assert f" {WORDS}" == "".join(text_of(message.infer_response) for message in answer)
    assert ends
    assert all("bad prompt" == error.error_message for error, _ in ends)
    assert server.process.poll() is None

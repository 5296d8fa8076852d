"""Why each request has a gRPC stream of its own: what Triton does where requests share one.

Triton writes the error of a request for a model that it does not have, or is unloading, at once,
without a look whether a decoupled model's response is being written to the same stream. gRPC takes
one write at a time, and aborts. Where a newer Triton lives through the first test,
docs/reliability.md and docs/security.md are out of date.
"""

from __future__ import annotations

import signal
import time
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
ANSWER = {"text_input": WORDS.encode(), "stream": True, "exclude_input_in_output": True}


@pytest.fixture
def server(stub_prefix: Path, tmp_path: Path) -> Iterator[Server]:
    """A server for one test."""
    with serving(tmp_path, stub_prefix) as running:
        yield running


@pytest.fixture
def send(server: Server) -> Iterator[Any]:
    """Send requests on one stream: send(requests) -> responses."""
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        yield lambda requests: stub.ModelStreamInfer(iter(requests), timeout=50)


def missing() -> Any:
    """Return a request for a version that the model does not have."""
    message = infer_request({"text_input": b"Hello"})
    message.model_version = "2"
    return message


def test_a_shared_stream_can_abort_triton(server: Server, send: Any) -> None:
    """One stream: requests for a missing model while another's answer is being written."""

    def requests() -> Iterator[Any]:
        yield infer_request(ANSWER)
        for _ in range(500):
            time.sleep(0.005)
            yield missing()

    with pytest.raises(grpc.RpcError):
        list(send(requests()))
    assert -signal.SIGABRT == server.process.wait(20)
    assert server.await_log("ASSERTION FAILED: !byte_buffer->Valid()")


def test_with_streams_of_their_own_all_are_answered(server: Server, send: Any) -> None:
    """The same requests on one connection, each on its own stream, for as long as one answers."""
    ends = []
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(lambda: list(send([infer_request(ANSWER)])))
        while not answering.done():
            ends.append(list(send([missing()])))
        answer = answering.result()
    assert f" {WORDS}" == "".join(text_of(message.infer_response) for message in answer)
    assert len(ends) > 10  # the first ten have been enough, on one stream
    assert all("version 2" in message.error_message for (message,) in ends)
    assert server.process.poll() is None

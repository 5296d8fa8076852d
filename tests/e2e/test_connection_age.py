"""Triton's connection age ends gRPC streams that a client forgot."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.echo_server import Server, serving
from tests.e2e.load import infer_request, text_of

pytestmark = pytest.mark.timeout(120)

AGE = ("--grpc-max-connection-age=1000", "--grpc-max-connection-age-grace=1000")
OLDER = ("--grpc-max-connection-age=4000", "--grpc-max-connection-age-grace=1000")
EXIT_SECONDS = 40


@contextlib.contextmanager
def channel_to(server: Server) -> Iterator[Any]:
    """Connect to the server."""
    with grpc.insecure_channel(server.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def forgotten_stream(stub: Any) -> Any:
    """Return the responses of a stream that was answered once and that the client never closes."""
    requests: queue.Queue[object] = queue.Queue()
    requests.put(infer_request({"text_input": b"Hello"}))
    responses = stub.ModelStreamInfer(iter(requests.get, None))
    assert "Hello" in text_of(next(responses).infer_response)
    return responses


def test_an_open_stream_ends_with_its_connection(stub_prefix: Path, tmp_path: Path) -> None:
    """It was answered before, ends after age and grace, and a new one serves on."""
    with serving(tmp_path, stub_prefix, *AGE) as server, channel_to(server) as stub:
        since = time.monotonic()
        for _ in range(2):
            responses = forgotten_stream(stub)
            with pytest.raises(grpc.RpcError) as ended:
                list(responses)
            assert grpc.StatusCode.UNAVAILABLE == ended.value.code()
        assert 2 <= time.monotonic() - since < 20


def test_a_stop_ends_with_the_connection(stub_prefix: Path, tmp_path: Path) -> None:
    """The client keeps the stream open; without an age the server would wait for it."""
    timeout = f"--exit-timeout-secs={EXIT_SECONDS}"
    with serving(tmp_path, stub_prefix, timeout, *OLDER) as server, channel_to(server) as stub:
        responses = forgotten_stream(stub)
        since = time.monotonic()
        server.process.terminate()
        assert 0 == server.process.wait(EXIT_SECONDS + 10)  # beyond its exit timeout Triton's is 1
        assert 1 < time.monotonic() - since < EXIT_SECONDS / 2
        with pytest.raises(grpc.RpcError):
            list(responses)

"""Triton's connection age ends gRPC streams that a client forgot."""

from __future__ import annotations

import queue
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.echo_server import serving
from tests.e2e.load import infer_request, text_of

pytestmark = pytest.mark.timeout(120)

AGE = ("--grpc-max-connection-age=1000", "--grpc-max-connection-age-grace=1000")


def test_an_open_stream_ends_with_its_connection(stub_prefix: Path, tmp_path: Path) -> None:
    """It was answered before, ends after age and grace, and a new one serves on."""
    with (
        serving(tmp_path, stub_prefix, *AGE) as server,
        grpc.insecure_channel(server.url) as channel,
    ):
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
        since = time.monotonic()
        for _ in range(2):
            requests: queue.Queue[object] = queue.Queue()
            requests.put(infer_request({"text_input": b"Hello"}))
            responses = infer(iter(requests.get, None))  # never half-closed
            assert "Hello" in text_of(next(responses).infer_response)
            with pytest.raises(grpc.RpcError) as ended:
                list(responses)
            assert grpc.StatusCode.UNAVAILABLE == ended.value.code()
        assert 2 <= time.monotonic() - since < 20

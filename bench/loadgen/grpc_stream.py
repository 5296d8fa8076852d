"""Triton's gRPC stream: one long-lived ModelStreamInfer call a worker, as bytes in both directions.

Requests are serialized before the clock starts, and a response is parsed by protobuf's C code and
no further: its tensors are looked at as the raw bytes that they came in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from loadgen.load import Prompt, Record, RequestFailed, Target

_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def encode(target: Target, prompt: Prompt) -> bytes:
    """Return the serialized ModelInferRequest for a prompt."""
    sampling = {"max_tokens": prompt.output_tokens, **target.sampling}
    inputs = [
        ("text_input", "BYTES", _string(prompt.text)),
        ("stream", "BOOL", bytes([target.stream])),
        ("exclude_input_in_output", "BOOL", b"\1"),
        ("sampling_parameters", "BYTES", _string(json.dumps(sampling))),
    ]
    outputs = ["text_output"]
    if target.count_tokens:
        inputs.append(("return_num_output_tokens", "BOOL", b"\1"))
        outputs.append("num_output_tokens")
    request = service_pb2.ModelInferRequest(model_name=target.model)
    for name, datatype, raw in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    # So that each response says whether it is the last one.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return bytes(request.SerializeToString())


def _string(text: str) -> bytes:
    """Return Triton's raw form of a BYTES tensor with one element."""
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


class Channel:
    """One HTTP/2 connection, for all the streams of a client process."""

    def __init__(self, target: Target) -> None:
        self._channel = grpc.aio.insecure_channel(target.address, options=_OPTIONS)
        self._open: Any = self._channel.stream_stream(_METHOD)

    def stream(self) -> GrpcStream:
        """Open a stream."""
        return GrpcStream(self._open())

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class GrpcStream:
    """One stream, with one request under way at a time."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def ask(self, request: bytes, record: Record) -> None:
        """Send an encoded request and note its answer. Raises RequestFailed."""
        read = self._call.read
        parse = service_pb2.ModelStreamInferResponse.FromString
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(request)
            while (message := await read()) is not grpc.aio.EOF:
                now = time.monotonic()
                if _note(parse(message), now, record):
                    return
        code, details = await self._call.code(), await self._call.details()
        raise RequestFailed(f"the stream ended: {code.name} {details}")

    def close(self) -> None:
        """End the stream, which cancels a request under way."""
        self._call.cancel()


def _note(message: Any, now: float, record: Record) -> bool:
    """Note a response; return whether it is the last one of its request."""
    if message.error_message:
        raise RequestFailed(message.error_message)
    response = message.infer_response
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "num_output_tokens":
            record.tokens += int.from_bytes(raw[:4], "little")
        elif len(raw) > 4:  # a text that is not empty, after its length
            record.times.append(now)
    return bool(response.parameters["triton_final_response"].bool_param)

"""Clients for load tests: many requests over gRPC, and bare HTTP connections that may not read."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.e2e.grpc_requests import Request, sampling
from tests.e2e.model_folder import ROOT
from tests.e2e.tiny_server import CONTEXT, await_metric
from tests.e2e.triton_server import TritonServer


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that got no text."""

    error: str


@dataclass(frozen=True, slots=True)
class Raw:
    """A tensor as it is in the message, right or wrong."""

    datatype: str
    shape: tuple[int, ...]
    content: bytes


def infer_request(inputs: Mapping[str, Any], timeout: int = 0) -> Any:
    """Return a ModelInferRequest for the model `vllm`, with whatever stands in ``inputs``.

    bytes become BYTES [1], a list of them BYTES [its length], a bool BOOL [1], a list of integers
    INT64 [its length]; with a ``Raw`` among them all go raw. ``timeout`` is Triton's, in
    microseconds.
    """
    message = service_pb2.ModelInferRequest(model_name="vllm")
    raw = any(isinstance(value, Raw) for value in inputs.values())
    for name, value in inputs.items():
        if raw:
            tensor = value if isinstance(value, Raw) else _raw(value)
            message.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            message.raw_input_contents.append(tensor.content)
        elif isinstance(value, bool):
            tensor = message.inputs.add(name=name, datatype="BOOL", shape=[1])
            tensor.contents.bool_contents.append(value)
        elif isinstance(value, bytes) or (value and isinstance(value[0], bytes)):
            values = [value] if isinstance(value, bytes) else value
            tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
            tensor.contents.bytes_contents.extend(values)
        else:
            tensor = message.inputs.add(name=name, datatype="INT64", shape=[len(value)])
            tensor.contents.int64_contents.extend(value)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    if timeout:
        message.parameters["timeout"].int64_param = timeout
    return message


def _raw(value: bool | bytes | Sequence[Any]) -> Raw:
    if isinstance(value, bool):
        return Raw("BOOL", (1,), bytes([value]))
    values: Sequence[Any] = [value] if isinstance(value, bytes) else value
    if values and isinstance(values[0], bytes):
        content = b"".join(struct.pack("<I", len(each)) + each for each in values)
        return Raw("BYTES", (len(values),), content)
    return Raw("INT64", (len(values),), struct.pack(f"<{len(values)}q", *values))


def prompt_request(prompt: str, parameters: str, *, stream: bool = False) -> Any:
    """Return a request for a text without its prompt."""
    inputs = {"text_input": prompt.encode(), "sampling_parameters": parameters.encode()}
    flags = {"exclude_input_in_output": True, "stream": stream}
    return infer_request(inputs | flags)


def endless(prompt: str = "Hello", *, stream: bool = True, **parameters: Any) -> dict[str, Any]:
    """Return the inputs of a request that does not end in any test's time."""
    return {
        "text_input": prompt,
        "stream": stream,
        "sampling_parameters": sampling(max_tokens=CONTEXT - 10, ignore_eos=True, **parameters),
    }


def occupy(server: TritonServer, stack: ExitStack, count: int) -> list[Request]:
    """Start endless requests, not streamed, so that this process has no work with them."""
    requests = [stack.enter_context(Request(server, endless(stream=False))) for _ in range(count)]
    await_metric(server, "vllm:num_requests_running", lambda n: n >= count)
    return requests


_CLIENT = """
import json, sys, time
from types import SimpleNamespace
from tests.e2e.grpc_requests import Request
request = Request(SimpleNamespace(grpc_port=int(sys.argv[1])), json.loads(sys.argv[2]))
print(request.next().error, flush=True)
time.sleep(600)
"""


def running_client(server: TritonServer) -> tuple[subprocess.Popen[bytes], str]:
    """Return a process with an endless streamed request that has had its first response.

    The second is that response's error, empty if it was none. Raises RuntimeError if the process
    has ended without a response.
    """
    words = [sys.executable, "-c", _CLIENT, str(server.grpc_port), json.dumps(endless())]
    client = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
    assert client.stdout is not None
    line = client.stdout.readline().decode()
    if not line:
        raise RuntimeError(f"a client ended with {client.wait()}")
    return client, line.strip()


class Connection:
    """A connection on which each request has a stream of its own, read to its end.

    Triton has faults with streams that several requests share (docs/known-issues.md).
    """

    def __init__(self, server: TritonServer) -> None:
        limit = [("grpc.max_send_message_length", 64 << 20)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=limit)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def send(self, message: Any) -> Any:
        """Send it, and read nothing; return its responses to come, an iterator with `cancel`."""
        return self._stub.ModelStreamInfer(iter([message]), timeout=600)

    def ask(self, message: Any) -> str | Refused:
        """Return the text, or the error. May be called from several threads."""
        return read_answer(self.send(message))


def read_answer(responses: Iterator[Any]) -> str | Refused:
    """Read a request's responses to the end; return the text, or the error."""
    answers = list(responses)
    for answer in answers:
        if answer.error_message:
            return Refused(answer.error_message)
    finals = [a.infer_response.parameters["triton_final_response"].bool_param for a in answers]
    assert any(finals), "the stream ended without an answer"
    return "".join(text_of(answer.infer_response) for answer in answers)


def text_of(response: Any) -> str:
    """Return the first text of a response; empty when it has none."""
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name == "text_output":
            return bytes(raw[4:]).decode(errors="replace")
    return ""


def flood(
    server: TritonServer, *, requests: int, at_once: int, prompt: str, max_tokens: int
) -> list[str | Refused]:
    """Keep ``at_once`` requests running until ``requests`` are done; return how each ended."""
    request = prompt_request(prompt, sampling(max_tokens=max_tokens, ignore_eos=True))
    with ExitStack() as stack, ThreadPoolExecutor(at_once) as pool:
        connections = [stack.enter_context(Connection(server)) for _ in range(8)]
        return list(pool.map(lambda n: connections[n % 8].ask(request), range(requests)))


def http_stream(server: TritonServer, prompt: str, max_tokens: int) -> socket.socket:
    """Send a streaming request over HTTP; return its connection, of which nothing is read yet."""
    body = {"text_input": prompt, "stream": True, "max_tokens": max_tokens}
    content = json.dumps(body | {"temperature": 0, "ignore_eos": True}).encode()
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=60)
    head = f"POST /v2/models/vllm/generate_stream HTTP/1.1\r\nContent-Length: {len(content)}"
    connection.sendall(f"{head}\r\nHost: localhost\r\n\r\n".encode() + content)
    return connection


def read_http_stream(connection: socket.socket) -> str:
    """Read an answer to its end; return the text, with the error after it if there was one."""
    received = b""
    while not _is_whole(received):
        part = connection.recv(65536)
        assert part, "the connection was closed in the middle of the text"
        received += part
    head, _, body = received.decode().partition("\r\n\r\n")
    if _LENGTH.search(head):  # Triton's own refusal; the model's is an event, whatever the status
        return str(json.loads(body)["error"])
    lines = [line for line in body.splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    return "".join(event.get("text_output", "") + event.get("error", "") for event in events)


_LENGTH = re.compile("^content-length: *([0-9]+)", re.IGNORECASE | re.MULTILINE)


def _is_whole(received: bytes) -> bool:
    """Return whether an HTTP response has come to its end: of its length, or in chunks."""
    head, _, body = received.partition(b"\r\n\r\n")
    length = _LENGTH.search(head.decode())
    return len(body) >= int(length[1]) if length else received.endswith(b"0\r\n\r\n")

"""gRPC requests to a tritonserver of the tests, and their responses."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

from tests.e2e.triton_server import TritonServer

_DATATYPES: dict[type, tuple[str, type]] = {bool: ("BOOL", np.bool_), int: ("INT64", np.int64)}


@dataclass(frozen=True, slots=True)
class Response:
    """One gRPC message, with when it came (seconds after the request)."""

    seconds: float
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    final: bool = False
    error: str = ""


class Request:
    """One streaming gRPC request to a model of our server, on a connection of its own.

    Use as a context manager; leaving it cancels a request that is still running.
    """

    def __init__(
        self,
        server: TritonServer,
        inputs: Mapping[str, Any],
        *,
        outputs: tuple[str, ...] = (),
        parameters: Mapping[str, Any] | None = None,
        model: str = "vllm",
        timeout: int | None = None,
    ) -> None:
        """``timeout`` is Triton's, in microseconds."""
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.sent = time.monotonic()  # before anything can come, be it an error
        self._client.start_stream(self._receive)
        self._client.async_stream_infer(
            model,
            [tensor(name, value) for name, value in inputs.items()],
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs] or None,
            request_id=uuid.uuid4().hex[:8],
            enable_empty_final_response=True,
            parameters=dict(parameters or {}),
            timeout=timeout,
        )

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancel the request at the server, as a client that leaves does."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def _receive(self, result: Any, error: Any) -> None:
        seconds = time.monotonic() - self.sent
        if error is not None:
            self._responses.put(Response(seconds, error=str(error.message())))
            return
        message = result.get_response()
        outputs = {
            output.name: tuple(
                element.decode() if isinstance(element, bytes) else str(element)
                for element in result.as_numpy(output.name).reshape(-1)
            )
            for output in message.outputs
        }
        final = message.parameters["triton_final_response"].bool_param
        self._responses.put(Response(seconds, outputs, final))

    def next(self, seconds: float = 60) -> Response:
        """Wait for one response."""
        return self._responses.get(timeout=seconds)

    def all(self, seconds: float = 60) -> list[Response]:
        """Return all responses (that ``next`` has not), once Triton has ended the stream.

        It does so after the model's FINAL flag, and after nothing else.
        """
        ending = threading.Thread(target=self._client.stop_stream, daemon=True)
        ending.start()
        ending.join(seconds)
        assert not ending.is_alive(), f"no FINAL flag within {seconds} s"
        responses = []
        while not self._responses.empty():
            responses.append(self._responses.get())
        return responses


def tensor(name: str, value: Any) -> Any:
    """Return a BOOL, INT64 or BYTES input of shape [1], or of a list's length."""
    values = value if isinstance(value, list) else [value]
    datatype, dtype = _DATATYPES.get(type(values[0]), ("BYTES", np.object_))
    encoded = [v.encode() if isinstance(v, str) else v for v in values]
    made = grpcclient.InferInput(name, [len(values)], datatype)
    made.set_data_from_numpy(np.array(encoded, dtype=dtype))
    return made


def ask(
    server: TritonServer, inputs: Mapping[str, Any], seconds: float = 60, **how: Any
) -> list[Response]:
    """Send one request and return all its responses."""
    with Request(server, inputs, **how) as request:
        return request.all(seconds)


def refusal(
    server: TritonServer,
    inputs: Mapping[str, Any],
    model: str = "vllm",
    parameters: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Send a request that is refused; return the name of the gRPC status, and the message.

    A stream carries no status unless it is asked to: then Triton ends it with the error's own. Over
    HTTP Triton answers 400 to whatever error a model has (docs/operations/reliability.md).
    """
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(
            lambda result, error: ends.put(error), headers={"triton_grpc_error": "true"}
        )
        made = [tensor(name, value) for name, value in inputs.items()]
        client.async_stream_infer(model, made, parameters=dict(parameters or {}))
        error = ends.get(timeout=60)
    assert error is not None, "it was answered"
    return str(error.status()).removeprefix("StatusCode."), str(error.message())


def sampling(**parameters: Any) -> str:
    """Return greedy sampling parameters as the tensor's JSON: the same text each time."""
    return json.dumps({"temperature": 0, "max_tokens": 8, **parameters})


def generate(server: TritonServer, prompt: str, **parameters: Any) -> str:
    """Return the greedy continuation of a prompt, not streamed, without the prompt."""
    inputs = {
        "text_input": prompt,
        "exclude_input_in_output": True,
        "sampling_parameters": sampling(**parameters),
    }
    (response,) = ask(server, inputs)
    assert not response.error, response.error
    ((text,),) = response.outputs.values()
    return text


def start_requests(
    server: TritonServer, stack: contextlib.ExitStack, *max_tokens: int
) -> list[Request]:
    """Start a streamed request for each number of tokens; return when all are running."""
    requests = []
    for number in max_tokens:
        parameters = sampling(max_tokens=number, ignore_eos=True)
        inputs = {
            "text_input": "Count to a thousand:",
            "stream": True,
            "sampling_parameters": parameters,
        }
        requests.append(stack.enter_context(Request(server, inputs)))
    for request in requests:
        assert not request.next().error
    return requests


def assert_ended_once(request: Request) -> None:
    """A request in flight got the rest of its text, and its stream has ended."""
    responses = request.all()
    last = responses[-1]
    assert last.final
    assert not last.error
    assert [] == [r for r in responses[:-1] if r.final or r.error]

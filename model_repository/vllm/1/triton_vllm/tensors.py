"""Between Triton's tensors and our values: decode a request, encode a response.

Two sets of names are understood, that of Triton's own vLLM backend and that of the 2023 tutorial.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from triton_vllm.errors import RequestError
from triton_vllm.generation import GenerationRequest
from triton_vllm.sampling import SamplingParser, load_json_object


@dataclass(frozen=True, slots=True)
class TensorNames:
    """One set of tensor names. ``flags`` are the boolean inputs that only this set has."""

    prompt: str
    stream: str
    sampling_parameters: str
    output: str
    flags: frozenset[str] = frozenset()

    @property
    def inputs(self) -> set[str]:
        """Every input of the set."""
        return {self.prompt, self.stream, self.sampling_parameters, *self.flags}


EXCLUDE_INPUT = "exclude_input_in_output"
RETURN_NUM_OUTPUT_TOKENS = "return_num_output_tokens"
NUM_OUTPUT_TOKENS = "num_output_tokens"
BACKEND_NAMES = TensorNames(
    "text_input",
    "stream",
    "sampling_parameters",
    "text_output",
    frozenset({EXCLUDE_INPUT, RETURN_NUM_OUTPUT_TOKENS}),
)
TUTORIAL_NAMES = TensorNames("PROMPT", "STREAM", "SAMPLING_PARAMETERS", "TEXT")

# Request parameters that speak to Triton and not to the sampler, and headers without a hyphen that
# --http-header-forward-pattern or --grpc-header-forward-pattern may put among them.
_NOT_SAMPLING = {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end"}
_NOT_SAMPLING |= {"traceparent", "tracestate", "baggage", "b3", "authorization", "cookie", "host"}
_NOT_SAMPLING |= {"accept", "origin", "referer", "forwarded", "via", "connection"}

_TRACE_HEADERS = ("traceparent", "tracestate")


def decode(request: Any, sampling: SamplingParser) -> GenerationRequest:
    """Turn a ``pb_utils.InferenceRequest`` into a ``GenerationRequest``.

    Raises RequestError naming the tensor, what came and what is allowed.
    """
    inputs = {tensor.name(): tensor for tensor in request.inputs()}
    names = _names_used(inputs)
    for name in inputs.keys() - names.inputs:
        allowed = ", ".join(sorted(names.inputs))
        raise RequestError(f"{name}: does not go with {names.prompt}, allowed: {allowed}")
    prompt = _string(inputs, names.prompt)
    stream = _boolean(inputs, names.stream, default=False)
    where, given = _sampling_parameters(request, inputs, names)
    exclude = _boolean(inputs, EXCLUDE_INPUT, default=stream)
    if stream and not exclude:
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, when {names.stream} is true")
    return GenerationRequest(
        request_id=f"{request.request_id() or 'request'}-{uuid.uuid4().hex[:8]}",
        prompt=prompt,
        stream=stream,
        sampling_params=sampling.parse(given, stream=stream, where=where),
        output_name=_output_name(request, names),
        echo_prompt=not exclude,
        text_from_start=names is TUTORIAL_NAMES,
        return_num_output_tokens=_boolean(inputs, RETURN_NUM_OUTPUT_TOKENS, default=False),
        trace_headers=_trace_headers(request),
    )


def string_tensor(pb_utils: Any, name: str, texts: tuple[str, ...]) -> Any:
    """Return ``texts`` as a Triton tensor, TYPE_STRING of shape [len(texts)], in UTF-8."""
    return pb_utils.Tensor(name, np.array([t.encode() for t in texts], dtype=np.object_))


def count_tensor(pb_utils: Any, name: str, counts: tuple[int, ...]) -> Any:
    """Return ``counts`` as a Triton tensor, TYPE_UINT32 of shape [len(counts)]."""
    return pb_utils.Tensor(name, np.array(counts, dtype=np.uint32))


def _names_used(inputs: Mapping[str, Any]) -> TensorNames:
    used = [n for n in (BACKEND_NAMES, TUTORIAL_NAMES) if n.prompt in inputs]
    if len(used) == 1:
        return used[0]
    came = "both came" if used else "neither came"
    raise RequestError(f"text_input: send either text_input or PROMPT (STRING [1]), {came}")


def _output_name(request: Any, names: TensorNames) -> str:
    """Return the output to send: the one asked for, else the one of the names used.

    Triton fills in every output of the model where a client names none.
    """
    asked = set(request.requested_output_names())
    others = {BACKEND_NAMES.output, TUTORIAL_NAMES.output} - {names.output}
    return (asked & others).pop() if names.output not in asked and asked & others else names.output


def _sampling_parameters(
    request: Any, inputs: Mapping[str, Any], names: TensorNames
) -> tuple[str, dict[str, Any]]:
    """Return where the sampling parameters stand, and the parameters.

    They come as the JSON tensor; where it is absent, as the request's own parameters.
    """
    where = names.sampling_parameters
    if where in inputs:
        text = _string(inputs, where)
        return where, load_json_object(text, where) if text.strip() else {}
    parameters = json.loads(request.parameters() or "{}")
    return "parameters", {
        key: value
        for key, value in parameters.items()
        if key.lower() not in _NOT_SAMPLING and not key.startswith("triton_") and "-" not in key
    }


def _trace_headers(request: Any) -> dict[str, str]:
    """Return the W3C trace context in which the request is served; empty for none.

    Triton's own span, where Triton traces (``--trace-config mode=opentelemetry``); else what the
    client sent, where Triton forwards it (``--http-header-forward-pattern``).
    """
    context = request.trace().get_context() if hasattr(request, "trace") else None
    carrier = json.loads(context) if context else json.loads(request.parameters() or "{}")
    return {key: carrier[key] for key in _TRACE_HEADERS if isinstance(carrier.get(key), str)}


def _string(inputs: Mapping[str, Any], name: str) -> str:
    value = _element(inputs, name)
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name}: not UTF-8: byte 0x{value[error.start]:02x} at offset {error.start}"
        ) from None


def _boolean(inputs: Mapping[str, Any], name: str, *, default: bool) -> bool:
    return bool(_element(inputs, name)) if name in inputs else default


def _element(inputs: Mapping[str, Any], name: str) -> Any:
    values = inputs[name].as_numpy().reshape(-1)
    if len(values) != 1:
        raise RequestError(f"{name}: must have one element, has {len(values)}")
    return values[0]

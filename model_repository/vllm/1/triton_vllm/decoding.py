"""The way in: a Triton request becomes a ``GenerationRequest``, or an error that says why not.

Two sets of names are understood, that of Triton's own vLLM backend and that of the 2023 tutorial.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from triton_vllm.deadline import shorter
from triton_vllm.errors import RequestError
from triton_vllm.generation import EngineOptions, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from triton_vllm.outputs import LOGPROBS, NO_LOGPROBS, OUTPUTS, Output
from triton_vllm.sampling import SamplingParser, load_json_object
from triton_vllm.tensors import Inputs, Tensor

EXCLUDE_INPUT = "exclude_input_in_output"
FLAGS = {output.flag: output for output in OUTPUTS}
INPUTS = (
    Tensor("text_input", "STRING", 1, "the prompt, UTF-8"),
    Tensor("input_ids", "INT64", -1, "the prompt as token ids, in place of text_input"),
    Tensor("stream", "BOOL", 1, "true: a response for each piece of new text"),
    Tensor("sampling_parameters", "STRING", 1, "JSON object of vLLM's SamplingParams"),
    Tensor(EXCLUDE_INPUT, "BOOL", 1, "true: the text without the prompt"),
    *(
        Tensor(flag, "BOOL", 1, f"true: {o.tensor.name} in each response")
        for flag, o in FLAGS.items()
    ),
    Tensor("PROMPT", "STRING", 1, "text_input of the tutorial's clients"),
    Tensor("STREAM", "BOOL", 1, "stream of the tutorial's clients"),
    Tensor("SAMPLING_PARAMETERS", "STRING", 1, "sampling_parameters of the tutorial's clients"),
)

# The inputs that hold a prompt, of which a request has one, and how each is read.
PROMPTS: dict[str, Callable[[Inputs], Prompt]] = {
    "text_input": lambda inputs: TextPrompt(inputs.string("text_input")),
    "input_ids": lambda inputs: TokenPrompt(inputs.integers("input_ids")),
    "PROMPT": lambda inputs: TextPrompt(inputs.string("PROMPT")),
}


@dataclass(frozen=True, slots=True)
class Names:
    """One set of names: what is called differently in the two, and all inputs of the set."""

    stream: str
    sampling_parameters: str
    text_output: str
    inputs: frozenset[str]


TUTORIAL = Names(
    "STREAM",
    "SAMPLING_PARAMETERS",
    "TEXT",
    frozenset({"PROMPT", "STREAM", "SAMPLING_PARAMETERS"}),
)
BACKEND = Names(
    "stream",
    "sampling_parameters",
    "text_output",
    frozenset(tensor.name for tensor in INPUTS) - TUTORIAL.inputs,
)

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
    inputs = Inputs(request)
    prompt_name = _prompt_name(inputs)
    names = TUTORIAL if prompt_name in TUTORIAL.inputs else BACKEND
    for name in inputs.names() - names.inputs:
        allowed = ", ".join(sorted(names.inputs))
        raise RequestError(f"{name}: does not go with {prompt_name}, allowed: {allowed}")
    prompt = PROMPTS[prompt_name](inputs)
    stream = inputs.boolean(names.stream)
    where, given = _sampling_parameters(request, inputs, names.sampling_parameters)
    params, options = sampling.parse(given, stream=stream, where=where)
    return GenerationRequest(
        request_id=f"{request.request_id() or 'request'}-{uuid.uuid4().hex[:8]}",
        prompt=prompt,
        stream=stream,
        sampling_params=params,
        options=_with_time_limit(request, options, where),
        text_output=_text_output(request, names),
        outputs=_outputs(inputs, params),
        prefix=_prefix(inputs, prompt, names, stream=stream),
        text_from_start=names is TUTORIAL,
        trace_headers=_trace_headers(request),
    )


def _prompt_name(inputs: Inputs) -> str:
    """Return the one input that holds the prompt."""
    came = [name for name in PROMPTS if name in inputs]
    if len(came) == 1:
        return came[0]
    *others, last = PROMPTS
    raise RequestError(
        (f"{came[1]}: came beside {came[0]}" if came else "text_input: missing")
        + f"; a request has one prompt: {', '.join(others)} or {last}"
    )


def _prefix(inputs: Inputs, prompt: Prompt, names: Names, *, stream: bool) -> str:
    """Return the text that stands before the generated text of a response."""
    text = prompt.text if isinstance(prompt, TextPrompt) else None
    if names is TUTORIAL:
        return text or ""
    echo = not inputs.boolean(EXCLUDE_INPUT, default=stream or text is None)
    if echo and stream:
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, when {names.stream} is true")
    if echo and text is None:
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, without text_input")
    return text or "" if echo else ""


def _outputs(inputs: Inputs, params: Any) -> tuple[Output, ...]:
    """Return what is asked for beside the text, and have vLLM compute what it needs."""
    asked = [output for flag, output in FLAGS.items() if inputs.boolean(flag)]
    if params.num_logprobs is None:
        asked = [NO_LOGPROBS if output is LOGPROBS else output for output in asked]
        if inputs.boolean("return_cumulative_logprob"):
            params.logprobs = 0
    return tuple(asked)


def _text_output(request: Any, names: Names) -> str:
    """Return the output for the text: the one asked for, else the one of the names used.

    Triton fills in every output of the model where a client names none.
    """
    asked = set(request.requested_output_names())
    (other,) = {BACKEND.text_output, TUTORIAL.text_output} - {names.text_output}
    return other if other in asked and names.text_output not in asked else names.text_output


def _sampling_parameters(request: Any, inputs: Inputs, where: str) -> tuple[str, dict[str, Any]]:
    """Return where the sampling parameters stand, and the parameters.

    They come as the JSON tensor; where it is absent, as the request's own parameters.
    """
    if where in inputs:
        text = inputs.string(where)
        return where, load_json_object(text, where) if text.strip() else {}
    parameters = json.loads(request.parameters() or "{}")
    return "parameters", {
        key: _unpacked(value)
        for key, value in parameters.items()
        if key.lower() not in _NOT_SAMPLING and not key.startswith("triton_") and "-" not in key
    }


def _triton_timeout(request: Any) -> int:
    """Return Triton's request timeout in microseconds, 0 for none.

    gRPC has a place for it; the generate endpoint of HTTP passes it on as any other parameter.
    """
    given = request.timeout() or json.loads(request.parameters() or "{}").get("timeout", 0)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise RequestError(f"timeout: must be microseconds, an integer from 0, got {given!r}")
    return given


def _with_time_limit(request: Any, options: EngineOptions, where: str) -> EngineOptions:
    """Return the options with the shorter of the client's time limit and Triton's for it."""
    asked = options.timeout_seconds
    if asked is not None and asked <= 0:
        raise RequestError(f'{where}: "timeout_seconds": must be more than 0, got {asked}')
    limit = shorter(asked, _triton_timeout(request))
    return options if limit == asked else replace(options, timeout_seconds=limit)


def _unpacked(parameter: Any) -> Any:
    """Return a request parameter's value; a list comes as JSON, as Triton carries none."""
    if isinstance(parameter, str) and parameter.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(parameter)
    return parameter


def _trace_headers(request: Any) -> Mapping[str, str]:
    """Return the W3C trace context in which the request is served; empty for none.

    Triton's own span, where Triton traces (``--trace-config mode=opentelemetry``); else what the
    client sent, where Triton forwards it (``--http-header-forward-pattern``).
    """
    context = request.trace().get_context() if hasattr(request, "trace") else None
    carrier = json.loads(context) if context else json.loads(request.parameters() or "{}")
    return {key: carrier[key] for key in _TRACE_HEADERS if isinstance(carrier.get(key), str)}

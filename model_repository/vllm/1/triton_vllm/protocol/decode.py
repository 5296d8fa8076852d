"""The way in: a Triton request becomes a ``GenerationRequest``, or an error that says why not."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from triton_vllm.errors import RequestError
from triton_vllm.limits.timeout import shorter
from triton_vllm.protocol.fields import load_json_object
from triton_vllm.protocol.outputs import LOGPROBS, NO_LOGPROBS, Output
from triton_vllm.protocol.prompts import PromptWithParameters
from triton_vllm.protocol.requests import EngineOptions, GenerationRequest, Prompt, TextPrompt
from triton_vllm.protocol.schema import (
    BACKEND,
    EXCLUDE_INPUT,
    FLAGS,
    GENERATION_FORMS,
    POOLING_FORMS,
    TUTORIAL,
    Form,
    Names,
)
from triton_vllm.protocol.tensors import Inputs, not_utf8

# Request parameters that speak to Triton and not to the sampler, and headers without a hyphen that
# --http-header-forward-pattern or --grpc-header-forward-pattern may put among them.
_NOT_SAMPLING = {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end"}
_NOT_SAMPLING |= {"traceparent", "tracestate", "baggage", "b3", "authorization", "cookie", "host"}
_NOT_SAMPLING |= {"accept", "origin", "referer", "forwarded", "via", "connection"}

_TRACE_HEADERS = ("traceparent", "tracestate")


class Parser(Protocol):
    """Parses the parameters of one kind of model, whose requests have the forms of ``schema``."""

    @property
    def schema(self) -> Mapping[str, Form]:
        """The forms of a request, by the input that holds the prompt."""

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, EngineOptions]:
        """Return vLLM's parameters, and ours, for what a client sent. Raises RequestError."""


def decode(request: Any, parser: Parser) -> GenerationRequest:
    """Turn a ``pb_utils.InferenceRequest`` into a ``GenerationRequest``.

    ``parser`` is that of the model's kind. Raises RequestError naming the tensor, what came and
    what is allowed.
    """
    inputs = Inputs(request)
    prompt_name = _prompt_name(inputs, parser.schema)
    form = parser.schema[prompt_name]
    names = form.names
    for name in inputs.names() - form.along - {prompt_name}:
        allowed = ", ".join(sorted(form.along))
        raise RequestError(f"{name}: does not go with {prompt_name}, allowed: {allowed}")
    asked = form.read(inputs)
    own = _request_parameters(request)
    if isinstance(asked, PromptWithParameters):
        prompt, where, given = asked
    else:
        prompt = asked
        where, given = _parameters(own, inputs, names.parameters)
    stream = inputs.boolean(names.stream)
    params, options = parser.parse(given, stream=stream, where=where)
    return GenerationRequest(
        request_id=f"{read_request_id(request) or 'request'}-{uuid.uuid4().hex[:8]}",
        prompt=prompt,
        stream=stream,
        sampling_params=params,
        options=_with_time_limit(request, own, options, where),
        text_output=_text_output(request, names) if form.has_text else "",
        outputs=_outputs(inputs, params, form),
        prefix=_prefix(inputs, prompt, names, stream=stream),
        text_from_start=names is TUTORIAL,
        trace_headers=_trace_headers(request, own),
    )


def read_request_id(request: Any) -> str:
    """Return the client's id of a ``pb_utils.InferenceRequest``, empty for none."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError as error:
        raise RequestError(not_utf8("id", error)) from None


def _request_parameters(request: Any) -> dict[str, Any]:
    try:
        own: dict[str, Any] = json.loads(request.parameters() or "{}")
    except UnicodeDecodeError as error:
        raise RequestError(not_utf8("parameters", error)) from None
    return own


def _prompt_name(inputs: Inputs, forms: Mapping[str, Form]) -> str:
    """Return the one input that holds the prompt."""
    came = [name for name in (*GENERATION_FORMS, *POOLING_FORMS) if name in inputs]
    if len(came) == 1 and came[0] in forms:
        return came[0]
    first, *others, last = forms
    if not came:
        wrong = f"{first}: missing"
    else:
        wrong = (
            f"{came[1]}: came beside {came[0]}" if came[1:] else f"{came[0]}: not for this model"
        )
    raise RequestError(
        f"{wrong}; a request has one prompt: {', '.join([first, *others])} or {last}"
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


def _outputs(inputs: Inputs, params: Any, form: Form) -> tuple[Output, ...]:
    """Return what is to be sent beside the text, and have vLLM compute what it needs."""
    asked = [output for flag, output in FLAGS.items() if inputs.boolean(flag)]
    asked += [output for output in form.outputs if inputs.boolean(output.flag, default=True)]
    if getattr(params, "num_logprobs", None) is None:
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


def _parameters(own: Mapping[str, Any], inputs: Inputs, where: str) -> tuple[str, dict[str, Any]]:
    """Return where the sampling or pooling parameters stand, and the parameters.

    They come as the JSON tensor; where it is absent, as the request's ``own`` parameters.
    """
    if where in inputs:
        text = inputs.string(where)
        return where, load_json_object(text, where) if text.strip() else {}
    return "parameters", {
        key: _unpacked(value)
        for key, value in own.items()
        if key.lower() not in _NOT_SAMPLING and not key.startswith("triton_") and "-" not in key
    }


def _triton_timeout(request: Any, own: Mapping[str, Any]) -> int:
    """Return Triton's request timeout in microseconds, 0 for none.

    gRPC has a place for it; the generate endpoint of HTTP passes it on as any other parameter.
    """
    given = request.timeout() or own.get("timeout", 0)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise RequestError(f"timeout: must be microseconds, an integer from 0, got {given!r}")
    return given


def _with_time_limit(
    request: Any, own: Mapping[str, Any], options: EngineOptions, where: str
) -> EngineOptions:
    """Return the options with the shorter of the client's time limit and Triton's for it."""
    asked = options.timeout_seconds
    if asked is not None and asked <= 0:
        raise RequestError(f'{where}: "timeout_seconds": must be more than 0, got {asked}')
    limit = shorter(asked, _triton_timeout(request, own))
    return options if limit == asked else replace(options, timeout_seconds=limit)


def _unpacked(parameter: Any) -> Any:
    """Return a request parameter's value; a list comes as JSON, as Triton carries none."""
    if isinstance(parameter, str) and parameter.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(parameter)
    return parameter


def _trace_headers(request: Any, own: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the W3C trace context in which the request is served; empty for none.

    Triton's own span, where Triton traces (``--trace-config mode=opentelemetry``); else what the
    client sent, where Triton forwards it (``--http-header-forward-pattern``).
    """
    context = request.trace().get_context() if hasattr(request, "trace") else None
    carrier = json.loads(context) if context else own
    return {key: carrier[key] for key in _TRACE_HEADERS if isinstance(carrier.get(key), str)}

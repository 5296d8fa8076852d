"""Decode a Triton request into a ``GenerationRequest``, or raise an error for the client."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import ParameterValidator, load_json_object
from triton_vllm.protocol.outputs import LOGPROBS, NO_LOGPROBS, TEXTS, Output
from triton_vllm.protocol.prompts import PromptWithParameters
from triton_vllm.protocol.requests import EngineOptions, GenerationRequest, Prompt, TextPrompt
from triton_vllm.protocol.schema import (
    EXCLUDE_INPUT,
    FLAGS,
    GENERATION_SCHEMAS,
    POOLING_SCHEMAS,
    TRITON_VLLM_BACKEND,
    TUTORIAL_2023,
    RequestSchema,
    TensorNames,
)
from triton_vllm.protocol.tensors import Inputs, utf8

_TEXT_OUTPUTS = frozenset(tensor.name for tensor in TEXTS)
# The keys that Triton's parameters extension reserves. Its generate endpoint passes them on to the
# model, which ignores them.
_RESERVED = {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"}
_RESERVED |= {"binary_data_output"}
_RESERVED_PREFIX = "triton_"
_TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Host:
    """Triton's view of the model."""

    outputs: frozenset[str] = _TEXT_OUTPUTS  # those that it declares
    header_patterns: tuple[str, ...] = ()  # of headers that the server forwards as parameters

    @classmethod
    def of(cls, model_config: str, server: ServerOptions) -> Host:
        """Read ``model_config``, the JSON in ``initialize``'s arguments."""
        outputs = json.loads(model_config).get("output", [])
        return cls(frozenset(output["name"] for output in outputs), server.header_patterns)

    def named_outputs(self, request: Any) -> frozenset[str]:
        """Return the outputs that the client names, empty for none.

        Triton fills in every output of the model where the client names none.
        """
        asked = frozenset(request.requested_output_names())
        return frozenset() if asked >= self.outputs else asked

    def model_parameters(
        self, own: Mapping[str, Any], request_id: str, known: Collection[str]
    ) -> dict[str, Any]:
        """Return the request parameters that the model reads.

        This leaves out Triton's own, the request's id, which the generate endpoint repeats among
        them, the trace context and forwarded headers. A key that differs from a ``known`` parameter
        only in hyphens and case is not a header, so that no misspelt parameter is lost.
        """
        return {
            key: value
            for key, value in own.items()
            if not (key in _RESERVED or key.startswith(_RESERVED_PREFIX) or key in _TRACE_HEADERS)
            and (key, value) != ("id", request_id)
            and (key.lower().replace("-", "_") in known or not self._forwards(key))
        }

    def _forwards(self, key: str) -> bool:
        return any(_matches(pattern, key) for pattern in self.header_patterns)


def _matches(pattern: str, key: str) -> bool:
    """Return whether Triton forwards a header. Its expressions ignore case by default."""
    flags = re.RegexFlag(0) if pattern.startswith("(?-i)") else re.IGNORECASE
    try:
        return re.search(pattern.removeprefix("(?-i)"), key, flags) is not None
    except re.error:  # valid for Triton's library, and not for Python's
        return True


_HOST = Host()


class Parser(Protocol):
    """Parses the parameters of one kind of model, whose requests have one of ``schemas``."""

    @property
    def schemas(self) -> Mapping[str, RequestSchema]:
        """Each kind of request, by the input that holds the prompt."""

    @property
    def parameters(self) -> ParameterValidator:
        """The parameters that a client may give."""

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, EngineOptions]:
        """Return vLLM's parameters and the options beside them. Raises RequestError."""


def decode(request: Any, parser: Parser, host: Host = _HOST) -> GenerationRequest:
    """Turn a ``pb_utils.InferenceRequest`` into a ``GenerationRequest``.

    ``parser`` belongs to the model's kind; ``host`` holds Triton's view of the model. Raises
    RequestError with the tensor, its value and what is allowed.
    """
    inputs = Inputs(request)
    prompt_name = _prompt_name(inputs, parser.schemas)
    schema = parser.schemas[prompt_name]
    names = schema.names
    for name in inputs.names() - schema.allowed_inputs - {prompt_name}:
        allowed = ", ".join(sorted(schema.allowed_inputs))
        raise RequestError(f"{name}: does not go with {prompt_name}, allowed: {allowed}")
    prompt = schema.read(inputs)
    own: dict[str, Any] = json.loads(utf8("parameters", request.parameters) or "{}")
    request_id = read_request_id(request)
    if isinstance(prompt, PromptWithParameters):
        prompt, where, given = prompt
    elif names.parameters in inputs:
        where = names.parameters
        text = inputs.string(where)
        given = load_json_object(text, where) if text.strip() else {}
    else:
        where, known = "parameters", parser.parameters
        given = known.unpacked(host.model_parameters(own, request_id, known.names))
    named = host.named_outputs(request)
    stream = inputs.boolean(names.stream)
    params, options = parser.parse(given, stream=stream, where=where)
    limit = _time_limit(request, own, options.timeout_seconds, where)
    return GenerationRequest(
        request_id=f"{request_id or 'request'}-{uuid.uuid4().hex[:8]}",
        prompt=prompt,
        stream=stream,
        sampling_params=params,
        options=replace(options, timeout_seconds=limit),
        text_output=_text_output(named, names) if schema.has_text else "",
        outputs=_outputs(inputs, params, schema, named, prompt_name),
        prefix=_prefix(inputs, prompt, names, stream=stream),
        text_from_start=names is TUTORIAL_2023,
        trace_headers=_trace_headers(request, own),
    )


def read_request_id(request: Any) -> str:
    """Return the client's id of a ``pb_utils.InferenceRequest``, empty for none."""
    return utf8("id", request.request_id)


def _prompt_name(inputs: Inputs, schemas: Mapping[str, RequestSchema]) -> str:
    """Return the one input that holds the prompt."""
    came = [name for name in (*GENERATION_SCHEMAS, *POOLING_SCHEMAS) if name in inputs]
    if len(came) == 1 and came[0] in schemas:
        return came[0]
    *others, last = schemas
    if not came:
        wrong = f"{others[0]}: missing"
    elif came[1:]:
        wrong = f"{came[1]}: came beside {came[0]}"
    else:
        wrong = f"{came[0]}: not for this model"
    raise RequestError(f"{wrong}; a request has one prompt: {', '.join(others)} or {last}")


def _prefix(inputs: Inputs, prompt: Prompt, names: TensorNames, *, stream: bool) -> str:
    """Return the text that a response repeats before the generated text."""
    text = prompt.text if isinstance(prompt, TextPrompt) else None
    if names is TUTORIAL_2023:
        return text or ""
    echo = not inputs.boolean(EXCLUDE_INPUT, default=stream or text is None)
    if echo and (stream or text is None):
        when = f"when {names.stream} is true" if stream else "without text_input"
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, {when}")
    return text or "" if echo else ""


def _outputs(
    inputs: Inputs, params: Any, schema: RequestSchema, named: frozenset[str], prompt_name: str
) -> tuple[Output, ...]:
    """Return what is sent beside the text, and have vLLM compute what it needs.

    An output is sent where its flag is true or the client names it.
    """
    flags = TRITON_VLLM_BACKEND.inputs if schema.names is TUTORIAL_2023 else schema.allowed_inputs
    choices = {output.tensor.name: output for flag, output in FLAGS.items() if flag in flags}
    always = {output.tensor.name: output for output in schema.outputs}
    texts = _TEXT_OUTPUTS if schema.has_text else frozenset()
    for name in sorted(named - choices.keys() - always.keys() - texts):
        allowed = ", ".join([*sorted(texts), *always, *choices])
        raise RequestError(f"{name}: no output of a request with {prompt_name}, allowed: {allowed}")
    asked = [
        output
        for name, output in (choices | always).items()
        if name in named or inputs.boolean(output.flag, default=name in always)
    ]
    if getattr(params, "num_logprobs", None) is None:
        if any(output.tensor.name == "cumulative_logprob" for output in asked):
            params.logprobs = 0
        asked = [NO_LOGPROBS if output is LOGPROBS else output for output in asked]
    return tuple(asked)


def _text_output(named: frozenset[str], names: TensorNames) -> str:
    """Return the output for the text: the one that is named, else the one of the inputs' names.

    Empty where the client names outputs, and none for the text: Triton would remove it from the
    response, and a response that is sent more than once must stay as it is (``encode``).
    """
    if not named or names.text_output in named:
        return names.text_output
    return next(iter(_TEXT_OUTPUTS & named), "")


def _time_limit(
    request: Any, own: Mapping[str, Any], asked: float | None, where: str
) -> float | None:
    """Return the shorter of the client's time limit and Triton's, in seconds; None for neither.

    Over HTTP, the generate endpoint passes Triton's on as a parameter, in microseconds.
    """
    if asked is not None and asked <= 0:
        raise RequestError(f'{where}: "timeout_seconds": must be more than 0, got {asked}')
    triton = request.timeout() or own.get("timeout", 0)
    if not isinstance(triton, int) or isinstance(triton, bool) or triton < 0:
        raise RequestError(f"timeout: must be microseconds, an integer from 0, got {triton!r}")
    return min(filter(None, (asked, triton / 1e6)), default=None)


def _trace_headers(request: Any, own: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the W3C trace context in which the request is served; empty for none.

    Triton's own span, where Triton traces (``--trace-config mode=opentelemetry``); else what the
    client sent as request parameters, or as headers that Triton forwards.
    """
    context = request.trace().get_context() if hasattr(request, "trace") else None
    carrier = json.loads(context) if context else own
    return {key: carrier[key] for key in _TRACE_HEADERS if isinstance(carrier.get(key), str)}

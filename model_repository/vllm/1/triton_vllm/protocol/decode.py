"""Decode a Triton request into a ``GenerationRequest``, or raise an error for the client."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import ParameterValidator, load_json_object
from triton_vllm.protocol.host import (
    Host,
    read_request_id,
    read_request_parameters,
    trace_headers,
    triton_timeout,
)
from triton_vllm.protocol.outputs import LOGPROBS, NO_LOGPROBS, Output
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
from triton_vllm.protocol.tensors import Inputs

_HOST = Host()
_TEXT_OUTPUTS = frozenset({TRITON_VLLM_BACKEND.text_output, TUTORIAL_2023.text_output})


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
    own = read_request_parameters(request)
    request_id = read_request_id(request)
    if isinstance(prompt, PromptWithParameters):
        prompt, where, given = prompt
    elif names.parameters in inputs:
        where = names.parameters
        text = inputs.string(where)
        given = load_json_object(text, where) if text.strip() else {}
    else:
        known = parser.parameters
        where = "parameters"
        given = known.unpacked(host.model_parameters(own, request_id, known.names))
    named = host.named_outputs(request)
    stream = inputs.boolean(names.stream)
    params, options = parser.parse(given, stream=stream, where=where)
    return GenerationRequest(
        request_id=f"{request_id or 'request'}-{uuid.uuid4().hex[:8]}",
        prompt=prompt,
        stream=stream,
        sampling_params=params,
        options=_with_time_limit(request, own, options, where),
        text_output=_text_output(named, names) if schema.has_text else "",
        outputs=_outputs(inputs, params, schema, named, prompt_name),
        prefix=_prefix(inputs, prompt, names, stream=stream),
        text_from_start=names is TUTORIAL_2023,
        trace_headers=trace_headers(request, own),
    )


def _prompt_name(inputs: Inputs, schemas: Mapping[str, RequestSchema]) -> str:
    """Return the one input that holds the prompt."""
    came = [name for name in (*GENERATION_SCHEMAS, *POOLING_SCHEMAS) if name in inputs]
    if len(came) == 1 and came[0] in schemas:
        return came[0]
    first, *others, last = schemas
    if not came:
        wrong = f"{first}: missing"
    else:
        wrong = (
            f"{came[1]}: came beside {came[0]}" if came[1:] else f"{came[0]}: not for this model"
        )
    raise RequestError(
        f"{wrong}; a request has one prompt: {', '.join([first, *others])} or {last}"
    )


def _prefix(inputs: Inputs, prompt: Prompt, names: TensorNames, *, stream: bool) -> str:
    """Return the text that a response repeats before the generated text."""
    text = prompt.text if isinstance(prompt, TextPrompt) else None
    if names is TUTORIAL_2023:
        return text or ""
    echo = not inputs.boolean(EXCLUDE_INPUT, default=stream or text is None)
    if echo and stream:
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, when {names.stream} is true")
    if echo and text is None:
        raise RequestError(f"{EXCLUDE_INPUT}: must be true, or absent, without text_input")
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
    asked = [o for name, o in choices.items() if name in named or inputs.boolean(o.flag)]
    asked += [
        o for name, o in always.items() if name in named or inputs.boolean(o.flag, default=True)
    ]
    if getattr(params, "num_logprobs", None) is None:
        needs_logprobs = any(output.tensor.name == "cumulative_logprob" for output in asked)
        asked = [NO_LOGPROBS if output is LOGPROBS else output for output in asked]
        if needs_logprobs:
            params.logprobs = 0
    return tuple(asked)


def _text_output(named: frozenset[str], names: TensorNames) -> str:
    """Return the output for the text: the one that is named, else the one of the inputs' names.

    Empty where the client names outputs, and none for the text: Triton would remove it from the
    response, and a response that is sent more than once must stay as it is (``encode``).
    """
    if not named or names.text_output in named:
        return names.text_output
    (other,) = _TEXT_OUTPUTS - {names.text_output}
    return other if other in named else ""


def _with_time_limit(
    request: Any, own: Mapping[str, Any], options: EngineOptions, where: str
) -> EngineOptions:
    """Return the options with the shorter of the client's time limit and Triton's for it."""
    asked = options.timeout_seconds
    if asked is not None and asked <= 0:
        raise RequestError(f'{where}: "timeout_seconds": must be more than 0, got {asked}')
    triton = triton_timeout(request, own) / 1e6
    limits = [seconds for seconds in (asked, triton) if seconds]
    return replace(options, timeout_seconds=min(limits)) if triton else options

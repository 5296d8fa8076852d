"""From a prompt of text or token ids to a generation, with vLLM's renderer and ``AsyncLLM``."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vllm import SamplingParams
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.protocol.delta import DeltaReader
from triton_vllm.protocol.requests import (
    EngineOptions,
    Generation,
    GenerationRequest,
    TextPrompt,
    TokenPrompt,
)
from triton_vllm.vllm_api.render.hand_over import Take, handed_over

_SHORT_PROMPT = 4096  # characters: about a millisecond to tokenize

# What beam search heeds, or what makes no difference to it, in every supported version.
_BEAM_SEARCH = {"n", "max_tokens", "temperature", "ignore_eos", "include_stop_str_in_output"}
_BEAM_SEARCH |= {"seed", "logprobs", "use_beam_search", "length_penalty"}
_BEAM_SEARCH |= {"lora_name", "cache_salt", "timeout_seconds"}
# What newer versions' beam search heeds. Its field for structured outputs is not read.
_NEWER_BEAM_SEARCH = {"skip_special_tokens", "watermarking", "allowed_token_ids"}


async def render(
    llm: AsyncLLM,
    prompt: TextPrompt | TokenPrompt,
    request: GenerationRequest,
    lora: LoRARequest | None,
) -> Generation:
    """Turn the prompt into an engine input through vLLM's renderer; return its generation.

    A long prompt is tokenized off the event loop; for a short one the way there and back would
    take longer than the work, and the first token would wait for it.

    Raises vLLM's validation error for a prompt that does not fit the model's context.
    """
    given: dict[str, Any] = (
        {"prompt": prompt.text}
        if isinstance(prompt, TextPrompt)
        else {"prompt_token_ids": prompt.token_ids}
    )
    if request.options.cache_salt:
        given["cache_salt"] = request.options.cache_salt
    params = llm.renderer.default_cmpl_tok_params
    parsed = [parse_model_prompt(llm.model_config, given)]
    if len(given.get("prompt", "")) <= _SHORT_PROMPT:
        (engine_input,) = llm.renderer.render_cmpl(parsed, params)
    else:
        (engine_input,) = await llm.renderer.render_cmpl_async(parsed, params)
    return generation(llm, engine_input, request, lora)


def generation(
    llm: AsyncLLM, engine_input: Any, request: GenerationRequest, lora: LoRARequest | None
) -> Generation:
    """Return the generation of text after a rendered prompt."""
    params = request.sampling_params
    reader = DeltaReader(request.num_sequences, detailed=bool(request.outputs), params=params)
    return Generation(
        lambda take: generate(llm, engine_input, request, params, lora, take), reader.read
    )


def generate(
    llm: AsyncLLM,
    engine_input: Any,
    request: GenerationRequest,
    params: SamplingParams,
    lora: LoRARequest | None,
    take: Take | None,
    **reasoning: Any,
) -> AsyncGenerator[RequestOutput, None]:
    """Add a request to the engine; yield its outputs. Closing the generator aborts it.

    ``take``, if any, gets outputs that are not yielded (``handed_over``).
    Beam search yields one, with the ``n`` best sequences, the best first. ``reasoning`` is what the
    engine should know of a reasoning model's state.
    """
    options = request.options
    common = {"lora_request": lora, "trace_headers": trace_headers(llm, request)}
    if not options.use_beam_search:
        outputs = llm.generate(
            engine_input,
            params,
            request.request_id,
            priority=options.priority,
            data_parallel_rank=options.data_parallel_rank,
            **common,
            **reasoning,
        )
        return typing.cast(
            "AsyncGenerator[RequestOutput, None]", handed_over(outputs, take) if take else outputs
        )
    if "priority" in beam_search_names():
        common["priority"] = options.priority
    prompt = engine_input.get("decoder_prompt", engine_input)
    context_left = llm.model_config.max_model_len - len(prompt["prompt_token_ids"])
    beams = beam_search_params(request.sampling_params, options, context_left)
    search = BeamSearch(llm).beam_search(engine_input, request.request_id, beams, **common)
    return typing.cast("AsyncGenerator[RequestOutput, None]", search)


def trace_headers(llm: AsyncLLM, request: GenerationRequest) -> Mapping[str, str] | None:
    """Return the request's trace context, if the engine traces."""
    traced = request.trace_headers and llm.observability_config.otlp_traces_endpoint
    return request.trace_headers if traced else None


class BeamSearch(BeamSearchOnlineMixin):  # type: ignore[misc]
    """The beam search of ``vllm serve``, many requests of one token each, over an ``AsyncLLM``."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.engine_client = llm
        self.renderer = llm.renderer


@functools.cache
def beam_search_names() -> frozenset[str]:
    """Return the names of the parameters that this vLLM's beam search heeds."""
    newer = _NEWER_BEAM_SEARCH.intersection(BeamSearchParams.__struct_fields__)
    takes = inspect.signature(BeamSearchOnlineMixin.beam_search).parameters
    return frozenset(_BEAM_SEARCH | newer | ({"priority"} & takes.keys()))


def beam_search_params(
    params: SamplingParams, options: EngineOptions, context_left: int
) -> BeamSearchParams:
    """Return vLLM's parameters for ``n`` beams of at most ``context_left`` tokens."""
    names = beam_search_names().intersection(BeamSearchParams.__struct_fields__) - {"max_tokens"}
    return BeamSearchParams(
        beam_width=params.n,
        max_tokens=min(params.max_tokens or context_left, context_left),
        length_penalty=options.length_penalty,
        **{name: getattr(params, name) for name in names if hasattr(params, name)},
    )

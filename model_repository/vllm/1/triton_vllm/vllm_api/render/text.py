"""From a prompt of text or token ids to a generation, with vLLM's renderer and ``AsyncLLM``."""

from __future__ import annotations

import typing
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.protocol.delta import DeltaReader
from triton_vllm.protocol.requests import (
    Generation,
    GenerationRequest,
    TextPrompt,
    TokenPrompt,
)
from triton_vllm.vllm_api.render.beam_search import beam_search

_SHORT_PROMPT = 4096  # characters: about a millisecond to tokenize


async def render(
    llm: AsyncLLM,
    prompt: TextPrompt | TokenPrompt,
    request: GenerationRequest,
    lora: LoRARequest | None,
) -> Generation:
    """Return the generation of text after a prompt of text or token ids."""
    engine_input = await tokenize(llm, prompt, request.options.cache_salt)
    return generation(llm, engine_input, request, lora)


async def tokenize(
    llm: AsyncLLM, prompt: TextPrompt | TokenPrompt, cache_salt: str | None = None
) -> Any:
    """Turn a prompt of text or token ids into an engine input through vLLM's renderer.

    A long prompt is tokenized off the event loop; for a short one the way there and back would
    take longer than the work, and the first token would wait for it.

    Raises vLLM's validation error for a prompt that does not fit the model's context.
    """
    given = _as_vllm_prompt(prompt, cache_salt)
    params = llm.renderer.default_cmpl_tok_params
    parsed = parse_model_prompt(llm.model_config, given)
    if len(given.get("prompt", "")) <= _SHORT_PROMPT:
        (engine_input,) = llm.renderer.render_cmpl([parsed], params)
    else:
        (engine_input,) = await llm.renderer.render_cmpl_async([parsed], params)
    return engine_input


def generation(
    llm: AsyncLLM, engine_input: Any, request: GenerationRequest, lora: LoRARequest | None
) -> Generation:
    """Return the generation of text after a rendered prompt."""
    return Generation(
        lambda: generate(llm, engine_input, request, request.sampling_params, lora),
        DeltaReader(
            request.num_sequences,
            detailed=bool(request.outputs),
            params=request.sampling_params,
        ).read,
    )


def _as_vllm_prompt(prompt: TextPrompt | TokenPrompt, cache_salt: str | None) -> dict[str, Any]:
    given: dict[str, Any] = (
        {"prompt": prompt.text}
        if isinstance(prompt, TextPrompt)
        else {"prompt_token_ids": prompt.token_ids}
    )
    return {**given, "cache_salt": cache_salt} if cache_salt else given


def generate(
    llm: AsyncLLM,
    engine_input: Any,
    request: GenerationRequest,
    params: SamplingParams,
    lora: LoRARequest | None,
    **reasoning: Any,
) -> AsyncGenerator[RequestOutput, None]:
    """Add a request to the engine; yield its outputs. Closing the generator aborts it.

    ``reasoning`` is what the engine should know of a reasoning model's state.
    """
    if request.options.use_beam_search:
        return beam_search(llm, engine_input, request, lora, trace_headers(llm, request))
    outputs = llm.generate(
        engine_input,
        params,
        request.request_id,
        lora_request=lora,
        trace_headers=trace_headers(llm, request),
        priority=request.options.priority,
        data_parallel_rank=request.options.data_parallel_rank,
        **reasoning,
    )
    return typing.cast("AsyncGenerator[RequestOutput, None]", outputs)


def trace_headers(llm: AsyncLLM, request: GenerationRequest) -> Mapping[str, str] | None:
    """Return the request's trace context, if the engine traces."""
    traced = request.trace_headers and llm.observability_config.otlp_traces_endpoint
    return request.trace_headers if traced else None

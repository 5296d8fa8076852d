"""Beam search, by the code of ``vllm serve``: many requests of one token each."""

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
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.protocol.requests import EngineOptions, GenerationRequest

# What beam search heeds, or what makes no difference to it, in every supported version.
_BEAM_SEARCH = {"n", "max_tokens", "temperature", "ignore_eos", "include_stop_str_in_output"}
_BEAM_SEARCH |= {"seed", "logprobs", "use_beam_search", "length_penalty"}
_BEAM_SEARCH |= {"lora_name", "cache_salt", "timeout_seconds"}
# What newer versions' beam search heeds. Its field for structured outputs is not read.
_NEWER_BEAM_SEARCH = {"skip_special_tokens", "watermarking", "allowed_token_ids"}


@functools.cache
def beam_search_names() -> frozenset[str]:
    """Return the names of the parameters that this vLLM's beam search heeds."""
    newer = _NEWER_BEAM_SEARCH.intersection(BeamSearchParams.__struct_fields__)
    takes = inspect.signature(BeamSearchOnlineMixin.beam_search).parameters
    return frozenset(_BEAM_SEARCH | newer | ({"priority"} & takes.keys()))


class BeamSearch(BeamSearchOnlineMixin):  # type: ignore[misc]
    """vLLM's beam search over an ``AsyncLLM``."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.engine_client = llm
        self.renderer = llm.renderer


def beam_search(
    llm: AsyncLLM,
    engine_input: Any,
    request: GenerationRequest,
    lora: LoRARequest | None,
    trace_headers: Mapping[str, str] | None,
) -> AsyncGenerator[RequestOutput, None]:
    """Yield one output with the ``n`` best sequences, the best first."""
    decoder_prompt = engine_input.get("decoder_prompt", engine_input)
    context_left = llm.model_config.max_model_len - len(decoder_prompt["prompt_token_ids"])
    options: dict[str, Any] = {"lora_request": lora, "trace_headers": trace_headers}
    if "priority" in beam_search_names():
        options["priority"] = request.options.priority
    outputs = BeamSearch(llm).beam_search(
        engine_input,
        request.request_id,
        beam_search_params(request.sampling_params, request.options, context_left),
        **options,
    )
    return typing.cast("AsyncGenerator[RequestOutput, None]", outputs)


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

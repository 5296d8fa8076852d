"""Beam search, by the code of ``vllm serve``: many requests of one token each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vllm import SamplingParams
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.sampling_params import BeamSearchParams

from triton_vllm.protocol.requests import EngineOptions, GenerationRequest

# The sampling parameters that it heeds, beside ``n`` and ``max_tokens``.
_HEEDED = ("ignore_eos", "temperature", "include_stop_str_in_output", "skip_special_tokens")


class BeamSearch(BeamSearchOnlineMixin):  # type: ignore[misc]
    """vLLM's beam search over an ``AsyncLLM``."""

    def __init__(self, llm: Any) -> None:
        self.engine_client = llm
        self.renderer = llm.renderer


def beam_search(
    llm: Any,
    engine_input: Any,
    request: GenerationRequest,
    lora: Any,
    trace_headers: Mapping[str, str] | None,
) -> AsyncGenerator[Any, None]:
    """Yield one output with the ``n`` best sequences, the best first."""
    decoder_prompt = engine_input.get("decoder_prompt", engine_input)
    context_left = llm.model_config.max_model_len - len(decoder_prompt["prompt_token_ids"])
    params = beam_search_params(request.sampling_params, request.options, context_left)
    outputs: AsyncGenerator[Any, None] = BeamSearch(llm).beam_search(
        engine_input, request.request_id, params, lora_request=lora, trace_headers=trace_headers
    )
    return outputs


def beam_search_params(
    params: SamplingParams, options: EngineOptions, context_left: int
) -> BeamSearchParams:
    """Return vLLM's parameters for ``n`` beams of at most ``context_left`` tokens."""
    known = BeamSearchParams.__struct_fields__
    return BeamSearchParams(
        beam_width=params.n,
        max_tokens=min(params.max_tokens or context_left, context_left),
        length_penalty=options.length_penalty,
        **{name: getattr(params, name) for name in _HEEDED if name in known},
    )

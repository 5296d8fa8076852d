"""A client's request: decoded and checked, then in the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.outputs import Output


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text prompt, which the model gets unchanged."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt that the client has tokenized."""

    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class MediaPrompt(TextPrompt):
    """A text prompt about images, audio or video."""

    media: Mapping[str, Sequence[str]]  # kind: base64 or URLs, in the order of their places


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages that the model's chat template makes a prompt of; all in OpenAI's JSON form."""

    messages: Sequence[Any]
    options: Mapping[str, Any]  # the inputs of CHAT_OPTIONS that came; vLLM's request has them, too


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts, or their token ids, for a pooling model: each becomes a vector."""

    inputs: Sequence[str | Sequence[int]]
    as_json: bool = False  # answered in text_output, as Triton's OpenAI front end reads it


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Texts for a pooling model to score: one query and each document, or pair by pair."""

    queries: Sequence[str]
    documents: Sequence[str]


Prompt = TextPrompt | TokenPrompt | ChatPrompt | EmbedRequest | ScoreRequest


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The sampling parameters that are not in vLLM's ``SamplingParams``."""

    lora_name: str = ""  # the adapter's, empty for none
    priority: int = 0  # the lower goes first, where the engine schedules by it
    cache_salt: str | None = None  # prefix caches of different salts are kept apart
    data_parallel_rank: int | None = None
    timeout_seconds: float | None = None  # from the request's arrival to its end
    on_timeout: Literal["error", "finish"] = "error"  # finish: with the text so far
    use_beam_search: bool = False  # with n beams
    length_penalty: float = 1.0  # beams compare by log probability / length ** length_penalty


@dataclass(frozen=True, slots=True)
class PoolingOptions(EngineOptions):
    """The pooling parameters that are not in vLLM's ``PoolingParams``."""

    truncate_prompt_tokens: int | None = None  # so many count (None: all; -1: as many as fit)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One client's request."""

    request_id: str
    prompt: Prompt
    stream: bool
    sampling_params: Any  # vLLM's SamplingParams, or its PoolingParams
    options: EngineOptions = EngineOptions()
    text_output: str = "text_output"  # the output that holds the text, empty for none
    outputs: tuple[Output, ...] = ()  # the others to send
    prefix: str = ""  # stands before the generated text of a response
    text_from_start: bool = False  # every response repeats all text so far, as in the 2023 tutorial
    trace_headers: Mapping[str, str] = field(default_factory=dict)  # the W3C trace context

    @property
    def num_sequences(self) -> int:
        """How many texts are generated for the one prompt (sampling parameter ``n``)."""
        return int(self.sampling_params.n)


@dataclass(frozen=True, slots=True)
class Generation:
    """A rendered request: what adds it to the engine, and what reads an output as a delta.

    ``outputs(take)`` yields vLLM's outputs until one is final; closing the generator aborts the
    request. It may give an output that is not final to ``take``, in the event loop, in place of
    yielding it, which costs less; None: all are yielded. The order is kept.
    """

    outputs: Callable[[Callable[[Any], None] | None], AsyncGenerator[Any, None]]
    read: Callable[[Any], Delta]

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
    """A text prompt about images, audio or video.

    ``media`` holds each kind's items, base64 or URLs, in the order of their places in the text.
    """

    media: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages that the model's chat template makes a prompt of; all in OpenAI's JSON form.

    ``options`` are the inputs of ``CHAT_OPTIONS`` that came, under the names of vLLM's request.
    """

    messages: Sequence[Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts, or their token ids, for a pooling model: each becomes a vector.

    ``as_json``: the answer is JSON in ``text_output``, as Triton's OpenAI front end reads it.
    """

    inputs: Sequence[str | Sequence[int]]
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Texts for a pooling model to score: one query and each document, or pair by pair."""

    queries: Sequence[str]
    documents: Sequence[str]


Prompt = TextPrompt | TokenPrompt | ChatPrompt | EmbedRequest | ScoreRequest


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The sampling parameters that are not in vLLM's ``SamplingParams``.

    ``lora_name`` is the adapter's, empty for none. Of ``priority`` the lower goes first, where the
    engine schedules by it. ``cache_salt`` keeps prefix caches of different salts apart.
    ``timeout_seconds`` bounds the request from its arrival to its end; ``on_timeout`` says whether
    it then fails or finishes with the text so far.
    ``use_beam_search`` with ``n`` beams, compared by log probability over length to the power of
    ``length_penalty``.
    """

    lora_name: str = ""
    priority: int = 0
    cache_salt: str | None = None
    data_parallel_rank: int | None = None
    timeout_seconds: float | None = None
    on_timeout: Literal["error", "finish"] = "error"
    use_beam_search: bool = False
    length_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class PoolingOptions(EngineOptions):
    """The pooling parameters that are not in vLLM's ``PoolingParams``.

    Of a text only ``truncate_prompt_tokens`` count, from its start (None: all; -1: as many as fit).
    """

    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One client's request.

    ``sampling_params`` is vLLM's ``SamplingParams``, or its ``PoolingParams``. ``text_output`` is
    the output that holds the text, empty for none, ``outputs`` are the others to send. ``prefix``
    stands before the generated text of a response. ``text_from_start`` is the 2023 tutorial's
    habit: every response repeats all text so far. ``trace_headers`` are the W3C trace context,
    under the names of its headers.
    """

    request_id: str
    prompt: Prompt
    stream: bool
    sampling_params: Any
    options: EngineOptions = EngineOptions()
    text_output: str = "text_output"
    outputs: tuple[Output, ...] = ()
    prefix: str = ""
    text_from_start: bool = False
    trace_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_sequences(self) -> int:
        """How many texts are generated for the one prompt (sampling parameter ``n``)."""
        return int(self.sampling_params.n)


@dataclass(frozen=True, slots=True)
class Generation:
    """A rendered request, and how its outputs are read.

    ``outputs`` adds the request to the engine and yields vLLM's outputs until one is final; closing
    the generator aborts the request. ``read`` turns an output into a delta.
    """

    outputs: Callable[[], AsyncGenerator[Any, None]]
    read: Callable[[Any], Delta]

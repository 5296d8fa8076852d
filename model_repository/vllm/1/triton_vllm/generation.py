"""What a client asks for, decoded and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from triton_vllm.outputs import Output


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt in words, which goes to the model as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt that the client has tokenized itself."""

    token_ids: Sequence[int]


Prompt = TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What stands among the sampling parameters and is not vLLM's ``SamplingParams``.

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
class GenerationRequest:
    """One client's request.

    ``sampling_params`` is vLLM's ``SamplingParams``. ``text_output`` is the output that holds the
    text, ``outputs`` are the others asked for. ``prefix`` stands before the generated text of a
    response. ``text_from_start`` is the 2023 tutorial's habit: every response repeats all text so
    far. ``trace_headers`` are the W3C trace context, under the names of its headers.
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

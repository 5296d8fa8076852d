"""The values that travel between the steps of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One client's request, decoded and checked.

    ``text_from_start`` is the 2023 tutorial's habit: every response repeats the prompt and all
    text so far. ``echo_prompt`` puts the prompt before the text of a response that is not
    streamed. ``sampling_params`` is vLLM's ``SamplingParams``. ``trace_headers`` are the W3C trace
    context, under the names of its headers.
    """

    request_id: str
    prompt: str
    stream: bool
    sampling_params: Any
    output_name: str
    echo_prompt: bool = False
    text_from_start: bool = False
    return_num_output_tokens: bool = False
    trace_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """The text that stands before the generated text in a response."""
        return self.prompt if self.echo_prompt or self.text_from_start else ""

    @property
    def num_sequences(self) -> int:
        """How many texts are generated for the one prompt (sampling parameter ``n``)."""
        return int(self.sampling_params.n)


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation and the tokens it stands for, one element for each sequence."""

    texts: tuple[str, ...]
    token_counts: tuple[int, ...]
    final: bool = False

    @classmethod
    def of(cls, output: Any, num_sequences: int) -> Delta:
        """Return vLLM's ``RequestOutput`` as a delta, each text at its sequence's index.

        An output of a stream with ``n`` > 1 holds only the sequences that have something new.
        """
        if num_sequences == 1:
            completion = output.outputs[0]
            return cls((completion.text,), (len(completion.token_ids),), output.finished)
        texts = [""] * num_sequences
        token_counts = [0] * num_sequences
        for completion in output.outputs:
            texts[completion.index] += completion.text
            token_counts[completion.index] += len(completion.token_ids)
        return cls(tuple(texts), tuple(token_counts), output.finished)

    @property
    def num_tokens(self) -> int:
        """The tokens of all sequences."""
        return sum(self.token_counts)

    def __add__(self, later: Delta) -> Delta:
        """Merge with the delta that follows: nothing is lost, one response is saved."""
        return Delta(
            tuple(a + b for a, b in zip(self.texts, later.texts, strict=True)),
            tuple(a + b for a, b in zip(self.token_counts, later.token_counts, strict=True)),
            self.final or later.final,
        )

"""The new part of a generation, on its way from the engine to the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from triton_vllm.errors import GenerationError, RequestError, ServingError

# Of one position: token id -> vLLM's ``Logprob``. The first token of a prompt has none.
PositionLogprobs = Mapping[int, Any] | None


@dataclass(frozen=True, slots=True)
class SequenceExtras:
    """The new part of one sequence, without its text."""

    token_ids: Sequence[int] = ()
    logprobs: Sequence[PositionLogprobs] = ()
    cumulative_logprob: float = 0.0  # of the whole sequence so far
    finish_reason: str | None = None  # in the delta that ends the sequence
    stop_reason: int | str | None = None  # likewise: the stop string or token id that ended it
    reasoning: str = ""  # of a chat
    tool_calls: Sequence[Mapping[str, Any]] = ()  # of a chat, in OpenAI's form
    schema_errors: Sequence[Mapping[str, str]] | None = None  # in the final delta

    @classmethod
    def of(cls, completion: Any) -> SequenceExtras:
        """Return the extras of vLLM's ``CompletionOutput``."""
        return cls(
            completion.token_ids,
            completion.logprobs or (),
            completion.cumulative_logprob or 0.0,
            completion.finish_reason,
            completion.stop_reason,
        )

    def __add__(self, later: SequenceExtras) -> SequenceExtras:
        """Merge with what follows."""
        return SequenceExtras(
            [*self.token_ids, *later.token_ids],
            [*self.logprobs, *later.logprobs],
            later.cumulative_logprob,
            self.finish_reason or later.finish_reason,
            self.stop_reason if later.stop_reason is None else later.stop_reason,
            self.reasoning + later.reasoning,
            [*self.tool_calls, *later.tool_calls],
            later.schema_errors,
        )


@dataclass(frozen=True, slots=True)
class DeltaExtras:
    """The optional outputs of a delta."""

    sequences: tuple[SequenceExtras, ...]
    num_input_tokens: int
    num_cached_tokens: int = 0
    prompt_logprobs: Sequence[PositionLogprobs] | None = None  # in the first delta
    embeddings: NDArray[Any] | None = None  # all of a pooling model: [texts, size] or [pairs]

    def __add__(self, later: DeltaExtras) -> DeltaExtras:
        """Merge with what follows."""
        return DeltaExtras(
            tuple(a + b for a, b in zip(self.sequences, later.sequences, strict=True)),
            later.num_input_tokens,
            later.num_cached_tokens,
            self.prompt_logprobs or later.prompt_logprobs,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation, one element for each sequence, and the number of its tokens."""

    texts: tuple[str, ...]
    num_tokens: int
    final: bool = False
    extras: DeltaExtras | None = None  # if the client asks for one of them

    @property
    def has_content(self) -> bool:
        """Whether a client would see the delta."""
        return self.final or self.extras is not None or any(self.texts)

    def __add__(self, later: Delta) -> Delta:
        """Merge with the delta that follows."""
        return Delta(
            tuple(a + b for a, b in zip(self.texts, later.texts, strict=True)),
            self.num_tokens + later.num_tokens,
            self.final or later.final,
            self.extras + later.extras if self.extras and later.extras else None,
        )


class DeltaReader:
    """Reads vLLM's outputs of one request as deltas, each text at its sequence's index.

    An output of a stream with ``n`` > 1 holds only the sequences that have something new.
    """

    def __init__(self, num_sequences: int, *, detailed: bool, params: Any = None) -> None:
        """Read ``num_sequences`` texts, and the extras if ``detailed``.

        ``params`` are the request's ``SamplingParams``; they tell why the engine fails on it.
        """
        self._params = params
        self._detailed = detailed
        self._sequences = [SequenceExtras()] * num_sequences  # of a delta without new tokens

    def read(self, output: Any) -> Delta:
        """Return vLLM's ``RequestOutput`` as a delta.

        Raises GenerationError if the engine failed on the request, or RequestError if its
        parameters contradict each other.
        """
        completions = output.outputs
        if output.finished and any(c.finish_reason == "error" for c in completions):
            raise _failure(self._params)
        if len(self._sequences) == 1:
            texts: tuple[str, ...] = (completions[0].text,)
            num_tokens = len(completions[0].token_ids)
        else:
            new = {completion.index: completion.text for completion in completions}
            texts = tuple(new.get(i, "") for i in range(len(self._sequences)))
            num_tokens = sum(len(completion.token_ids) for completion in completions)
        if not self._detailed:
            return Delta(texts, num_tokens, output.finished)
        extras = DeltaExtras(
            self._place(completions),
            len(output.prompt_token_ids or ()),
            output.num_cached_tokens or 0,
            output.prompt_logprobs,
        )
        return Delta(texts, num_tokens, output.finished, extras)

    def _place(self, completions: Sequence[Any]) -> tuple[SequenceExtras, ...]:
        """Return each sequence's extras; one without new tokens keeps its cumulative logprob."""
        if len(self._sequences) == 1:
            return (SequenceExtras.of(completions[0]),)
        placed = self._sequences.copy()
        for completion in completions:
            new = placed[completion.index] = SequenceExtras.of(completion)
            total = new.cumulative_logprob
            self._sequences[completion.index] = SequenceExtras(cumulative_logprob=total)
        return tuple(placed)


# Beside a grammar, these may leave no token to choose; then the engine ends the request.
_EXCLUDING = ("allowed_token_ids", "bad_words", "ignore_eos", "logit_bias", "min_tokens")


def _failure(params: Any) -> ServingError:
    """Return what the finish reason "error" means for a request with these ``SamplingParams``."""
    excluding = [f'"{name}"' for name in _EXCLUDING if getattr(params, name, None)]
    if not excluding or getattr(params, "structured_outputs", None) is None:
        return GenerationError("the engine failed on this request; it may be sent again")
    return RequestError(
        f"{', '.join(excluding)}: leave no token that the grammar allows (structured_outputs, or "
        "that of a tool call)"
    )

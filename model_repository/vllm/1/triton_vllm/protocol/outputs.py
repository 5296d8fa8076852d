"""The output tensors, and how each is made of a delta.

Every response has the text. It has another output ``x`` if the request names ``x`` or its input
``return_x`` is true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_vllm.protocol.delta import DeltaExtras, PositionLogprobs
from triton_vllm.protocol.tensors import Tensor

_LOWEST = -9999.0  # for minus infinity, which JSON does not have; ``vllm serve`` writes the same


@dataclass(frozen=True, slots=True)
class Output:
    """An optional output: its tensor, and the function that makes it of the extras."""

    tensor: Tensor
    encode: Callable[[DeltaExtras], NDArray[Any]]

    @property
    def flag(self) -> str:
        """The BOOL input that requests it."""
        return f"return_{self.tensor.name}"


def strings(texts: Iterable[str]) -> NDArray[np.object_]:
    """Return texts in Triton's form for STRING: an array of UTF-8 bytes."""
    return np.array([text.encode() for text in texts], dtype=np.object_)


def _logprobs_json(positions: Sequence[PositionLogprobs]) -> str:
    """Return log probabilities as JSON: a list of ``{token id: {"logprob", "rank", ...}}``."""
    return json.dumps(
        [
            position
            and {
                token_id: {
                    "logprob": max(_LOWEST, entry.logprob),  # so also for NaN
                    "rank": entry.rank,
                    "decoded_token": entry.decoded_token,
                }
                for token_id, entry in position.items()
            }
            for position in positions
        ]
    )


def _finish_reason(extras: DeltaExtras) -> NDArray[Any]:
    return strings(str(sequence.finish_reason) for sequence in extras.sequences)


def _stop_reason(extras: DeltaExtras) -> NDArray[Any]:
    return strings(json.dumps(sequence.stop_reason) for sequence in extras.sequences)


def _cumulative_logprob(extras: DeltaExtras) -> NDArray[Any]:
    values = [sequence.cumulative_logprob for sequence in extras.sequences]
    return np.array(values, dtype=np.float32)


def _logprobs(extras: DeltaExtras) -> NDArray[Any]:
    return strings(_logprobs_json(sequence.logprobs) for sequence in extras.sequences)


def _no_logprobs(extras: DeltaExtras) -> NDArray[Any]:
    return strings("null" for _ in extras.sequences)


def _prompt_logprobs(extras: DeltaExtras) -> NDArray[Any]:
    positions = extras.prompt_logprobs  # vLLM's later outputs have an empty list
    return strings([_logprobs_json(positions) if positions else "null"])


def _num_input_tokens(extras: DeltaExtras) -> NDArray[Any]:
    return np.array([extras.num_input_tokens], dtype=np.uint32)


def _num_cached_tokens(extras: DeltaExtras) -> NDArray[Any]:
    return np.array([extras.num_cached_tokens], dtype=np.uint32)


def _num_output_tokens(extras: DeltaExtras) -> NDArray[Any]:
    counts = [len(sequence.token_ids) for sequence in extras.sequences]
    return np.array(counts, dtype=np.uint32)


def _output_ids(extras: DeltaExtras) -> NDArray[Any]:
    ids = [token_id for sequence in extras.sequences for token_id in sequence.token_ids]
    return np.array(ids, dtype=np.int64)


def _reasoning(extras: DeltaExtras) -> NDArray[Any]:
    return strings(sequence.reasoning for sequence in extras.sequences)


def _tool_calls(extras: DeltaExtras) -> NDArray[Any]:
    return strings(json.dumps([*sequence.tool_calls]) for sequence in extras.sequences)


def _schema_errors(extras: DeltaExtras) -> NDArray[Any]:
    errors = [sequence.schema_errors for sequence in extras.sequences]
    return strings(json.dumps(each and [*each], ensure_ascii=False) for each in errors)


def _vectors(extras: DeltaExtras) -> NDArray[Any]:
    assert extras.embeddings is not None, "as each answer of a pooling model holds them"
    return extras.embeddings


TEXTS = (
    Tensor("text_output", "STRING", -1, "the text, one element for each sequence"),
    Tensor("TEXT", "STRING", -1, "the prompt and all text so far, for the tutorial's clients"),
)
LOGPROBS = Output(
    Tensor("logprobs", "STRING", -1, "JSON, one list for each sequence: a position's tokens"),
    _logprobs,
)
NO_LOGPROBS = Output(LOGPROBS.tensor, _no_logprobs)
SCHEMA_ERRORS = Output(
    Tensor("schema_errors", "STRING", -1, "JSON: what the text violates of its schema; or null"),
    _schema_errors,
)
OUTPUTS = (
    Output(
        Tensor("finish_reason", "STRING", -1, '"stop", "length", ...; "None" before the end'),
        _finish_reason,
    ),
    Output(
        Tensor("cumulative_logprob", "FP32", -1, "log probability of all text so far"),
        _cumulative_logprob,
    ),
    LOGPROBS,
    Output(Tensor("num_input_tokens", "UINT32", 1, "the prompt's tokens"), _num_input_tokens),
    Output(
        Tensor("num_output_tokens", "UINT32", -1, "the number of new tokens in this response"),
        _num_output_tokens,
    ),
    Output(
        Tensor("output_ids", "INT64", -1, "these tokens' ids, sequence after sequence"),
        _output_ids,
    ),
    Output(
        Tensor("stop_reason", "STRING", -1, "JSON: the stop string or token id met, or null"),
        _stop_reason,
    ),
    Output(
        Tensor("prompt_logprobs", "STRING", 1, "JSON list, in the first response, then null"),
        _prompt_logprobs,
    ),
    SCHEMA_ERRORS,
    Output(
        Tensor("num_cached_tokens", "UINT32", 1, "the prompt's tokens found in the prefix cache"),
        _num_cached_tokens,
    ),
)
# A response to messages has these unless their flag is false.
CHAT_OUTPUTS = (
    Output(Tensor("reasoning", "STRING", -1, "the model's reasoning"), _reasoning),
    Output(
        Tensor("tool_calls", "STRING", -1, "JSON list of OpenAI's tool calls; streamed, of deltas"),
        _tool_calls,
    ),
)
# A pooling model answers with one of these.
EMBEDDINGS = Output(
    Tensor("embeddings", "FP32", (-1, -1), "a row for each text: its embedding, or its classes"),
    _vectors,
)
SCORES = Output(Tensor("scores", "FP32", -1, "a score for each pair"), _vectors)
OUTPUT_TENSORS = (
    *TEXTS,
    *(output.tensor for output in (*OUTPUTS, *CHAT_OUTPUTS, EMBEDDINGS, SCORES)),
)

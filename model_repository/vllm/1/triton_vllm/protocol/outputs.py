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

from triton_vllm.protocol.delta import DeltaExtras, PositionLogprobs, SequenceExtras
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


def _texts(name: str, meaning: str, of: Callable[[SequenceExtras], str]) -> Output:
    """Return an output with one text for each sequence."""
    tensor = Tensor(name, "STRING", -1, meaning)
    return Output(tensor, lambda extras: strings(map(of, extras.sequences)))


def _numbers(tensor: Tensor, of: Callable[[DeltaExtras], list[Any]]) -> Output:
    dtype = {"FP32": np.float32, "UINT32": np.uint32, "INT64": np.int64}[tensor.datatype]
    return Output(tensor, lambda extras: np.array(of(extras), dtype))


def _prompt_logprobs(extras: DeltaExtras) -> NDArray[Any]:
    positions = extras.prompt_logprobs  # vLLM's later outputs have an empty list
    return strings([_logprobs_json(positions) if positions else "null"])


def _embeddings(extras: DeltaExtras) -> NDArray[Any]:
    assert extras.embeddings is not None, "as each answer of a pooling model holds them"
    return extras.embeddings


TEXTS = (
    Tensor("text_output", "STRING", -1, "the text, one element for each sequence"),
    Tensor("TEXT", "STRING", -1, "the prompt and all text so far, for the tutorial's clients"),
)
LOGPROBS = _texts(
    "logprobs",
    "JSON, one list for each sequence: a position's tokens",
    lambda sequence: _logprobs_json(sequence.logprobs),
)
NO_LOGPROBS = Output(LOGPROBS.tensor, lambda extras: strings(["null"] * len(extras.sequences)))
SCHEMA_ERRORS = _texts(
    "schema_errors",
    "JSON: what the text violates of its schema; or null",
    lambda sequence: json.dumps(sequence.schema_errors, ensure_ascii=False),
)
OUTPUTS = (
    _texts(
        "finish_reason",
        '"stop", "length", ...; "None" before the end',
        lambda sequence: str(sequence.finish_reason),
    ),
    _numbers(
        Tensor("cumulative_logprob", "FP32", -1, "log probability of all text so far"),
        lambda extras: [sequence.cumulative_logprob for sequence in extras.sequences],
    ),
    LOGPROBS,
    _numbers(
        Tensor("num_input_tokens", "UINT32", 1, "the prompt's tokens"),
        lambda extras: [extras.num_input_tokens],
    ),
    _numbers(
        Tensor("num_output_tokens", "UINT32", -1, "the number of new tokens in this response"),
        lambda extras: [len(sequence.token_ids) for sequence in extras.sequences],
    ),
    _numbers(
        Tensor("output_ids", "INT64", -1, "these tokens' ids, sequence after sequence"),
        lambda extras: [token for sequence in extras.sequences for token in sequence.token_ids],
    ),
    _texts(
        "stop_reason",
        "JSON: the stop string or token id met, or null",
        lambda sequence: json.dumps(sequence.stop_reason),
    ),
    Output(
        Tensor("prompt_logprobs", "STRING", 1, "JSON list, in the first response, then null"),
        _prompt_logprobs,
    ),
    SCHEMA_ERRORS,
    _numbers(
        Tensor("num_cached_tokens", "UINT32", 1, "the prompt's tokens found in the prefix cache"),
        lambda extras: [extras.num_cached_tokens],
    ),
)
# A response to messages has these unless their flag is false.
CHAT_OUTPUTS = (
    _texts("reasoning", "the model's reasoning", lambda sequence: sequence.reasoning),
    _texts(
        "tool_calls",
        "JSON list of OpenAI's tool calls; streamed, of deltas",
        lambda sequence: json.dumps([*sequence.tool_calls]),
    ),
)
# A pooling model answers with one of these.
EMBEDDINGS = Output(
    Tensor("embeddings", "FP32", (-1, -1), "a row for each text: its embedding, or its classes"),
    _embeddings,
)
SCORES = Output(Tensor("scores", "FP32", -1, "a score for each pair"), _embeddings)
OUTPUT_TENSORS = (
    *TEXTS,
    *(output.tensor for output in (*OUTPUTS, *CHAT_OUTPUTS, EMBEDDINGS, SCORES)),
)

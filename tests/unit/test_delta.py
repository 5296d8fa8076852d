"""Deltas: read from vLLM's outputs, merged without loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_vllm.errors import ServingError
from triton_vllm.protocol.delta import Delta, DeltaExtras, DeltaReader, SequenceExtras


@dataclass
class Completion:
    """``vllm.outputs.CompletionOutput``."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Any]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class Output:
    """``vllm.outputs.RequestOutput``."""

    outputs: list[Completion] = field(default_factory=list)
    finished: bool = False
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    num_cached_tokens: int | None = None
    prompt_logprobs: list[dict[int, Any] | None] | None = None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output([Completion(1, "b", [7])]), Delta(("", "b", ""), 1)),
        (
            Output([Completion(2, "c", [7, 8]), Completion(0, "a", [9])], finished=True),
            Delta(("a", "", "c"), 3, final=True),
        ),
    ],
    ids=["one has news", "out of order"],
)
def test_each_sequence_keeps_its_place(output: Output, expected: Delta) -> None:
    """With n > 1 each text is at its sequence's index, empty if it has nothing new."""
    assert expected == DeltaReader(3, detailed=False).read(output)


def test_one_sequence() -> None:
    """With n = 1 the delta is vLLM's own."""
    output = Output([Completion(0, " a", [5])], finished=True)
    assert Delta((" a",), 1, final=True) == DeltaReader(1, detailed=False).read(output)


@dataclass
class Params:
    """``vllm.SamplingParams``, as far as it excludes tokens."""

    structured_outputs: str | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, "INTERNAL: the engine failed on this request; it may be sent again"),
        (Params("a+"), "INTERNAL: the engine failed on this request; it may be sent again"),
        (Params(None, [1]), "INTERNAL: the engine failed on this request; it may be sent again"),
        (
            Params("a+", [1], ["b"]),
            'INVALID_ARG: "allowed_token_ids", "bad_words": leave no token that the grammar '
            "allows (structured_outputs, or that of a tool call)",
        ),
    ],
    ids=["unknown", "a grammar alone", "tokens alone", "what excludes each other"],
)
def test_a_failed_request_is_told_whether_to_come_again(params: Any, expected: str) -> None:
    """What its parameters exclude together will fail each time."""
    reader = DeltaReader(1, detailed=False, params=params)
    with pytest.raises(ServingError) as raised:
        reader.read(Output([Completion(0, "", [], finish_reason="error")], finished=True))
    assert expected == f"{raised.value.status}: {raised.value}"


def test_details_are_read_where_they_are_asked_for() -> None:
    """Each sequence has its own; the prompt's come once for all."""
    reader = DeltaReader(2, detailed=True)
    position = {7: "a logprob"}
    first = reader.read(
        Output([Completion(1, "b", [7], [position], -0.5)], num_cached_tokens=2)
    ).extras
    expected = DeltaExtras((SequenceExtras(), SequenceExtras([7], [position], -0.5)), 3, 2)
    assert expected == first


def test_a_sequence_without_news_keeps_its_log_probability() -> None:
    """While the other sequence goes on, cumulative outputs stay and others are empty."""
    reader = DeltaReader(2, detailed=True)
    reader.read(Output([Completion(0, "a", [7], [{}], -0.5, "stop", "\n")]))
    later = reader.read(Output([Completion(1, "b", [8], [{}], -0.25)], finished=True)).extras
    assert later is not None
    assert SequenceExtras(cumulative_logprob=-0.5) == later.sequences[0]
    assert SequenceExtras([8], [{}], -0.25) == later.sequences[1]


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (Delta(("a",), 1), True),
        (Delta(("", "a"), 1), True),
        (Delta(("",), 1), False),
        (Delta(("",), 1, final=True), True),
        (Delta(("",), 1, extras=DeltaExtras((SequenceExtras([7]),), 3)), True),
    ],
    ids=["text", "one has text", "none", "the end", "a token without text"],
)
def test_news_is_what_the_client_can_see(delta: Delta, expected: bool) -> None:
    """A delta without text is not sent, unless it ends the stream or its tokens are requested."""
    assert expected == delta.has_content


sequences = st.builds(
    SequenceExtras,
    st.lists(st.integers(0, 9), max_size=2),
    st.just(()),
    st.floats(-9, 0),
    st.none() | st.just("stop"),
    st.none() | st.just(0),
)
extras = st.builds(DeltaExtras, st.tuples(sequences, sequences), st.just(3))
deltas = st.lists(
    st.builds(Delta, st.tuples(st.text(), st.text()), st.integers(0, 9), extras=extras),
    min_size=1,
    max_size=9,
)


@given(deltas)
def test_merging_deltas_loses_nothing(parts: list[Delta]) -> None:
    """A merged delta holds each sequence's text and tokens in order, and how it ended."""
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert tuple("".join(p.texts[i] for p in parts) for i in (0, 1)) == whole.texts
    assert sum(p.num_tokens for p in parts) == whole.num_tokens
    assert whole.extras is not None
    for i, merged in enumerate(whole.extras.sequences):
        news = [p.extras.sequences[i] for p in parts if p.extras]
        assert [t for s in news for t in s.token_ids] == list(merged.token_ids)
        assert news[-1].cumulative_logprob == merged.cumulative_logprob
        assert any(s.finish_reason for s in news) == bool(merged.finish_reason)
        assert any(s.stop_reason == 0 for s in news) == (merged.stop_reason == 0)


def test_a_merged_delta_is_final_if_the_later_is() -> None:
    """Merging keeps the end of the stream."""
    assert Delta(("ab",), 2, final=True) == Delta(("a",), 1) + Delta(("b",), 1, final=True)


def test_deltas_of_different_requests_do_not_merge() -> None:
    """Deltas with different numbers of sequences raise an error, because they are a bug."""
    with pytest.raises(ValueError, match="zip"):
        Delta(("a",), 1) + Delta(("a", "b"), 2)

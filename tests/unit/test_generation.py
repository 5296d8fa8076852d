"""The values that travel between the steps of a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import FakeSamplingParams, generation_request
from triton_vllm.generation import Delta


@pytest.mark.parametrize(
    ("echo_prompt", "text_from_start", "expected"),
    [(False, False, ""), (True, False, "Once"), (False, True, "Once"), (True, True, "Once")],
    ids=["neither", "echo", "from start", "both"],
)
def test_the_prompt_stands_before_the_text(
    echo_prompt: bool, text_from_start: bool, expected: str
) -> None:
    """The prefix of a response is the prompt where the client's names or wish ask for it."""
    request = generation_request(echo_prompt=echo_prompt, text_from_start=text_from_start)
    assert expected == request.prefix


def test_the_number_of_sequences_is_n() -> None:
    """The sampling parameter n says how many texts belong to a prompt."""
    request = generation_request(sampling_params=FakeSamplingParams(n=3))
    assert 3 == request.num_sequences


deltas = st.lists(
    st.builds(
        Delta, st.tuples(st.text(), st.text()), st.tuples(st.integers(0, 9), st.integers(0, 9))
    ),
    min_size=1,
    max_size=9,
)


@given(deltas)
def test_merging_deltas_loses_no_text_and_no_token(parts: list[Delta]) -> None:
    """A merged delta holds each sequence's text in order, and all tokens."""
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    expected = tuple("".join(p.texts[i] for p in parts) for i in (0, 1))
    assert expected == whole.texts
    assert sum(p.num_tokens for p in parts) == whole.num_tokens


def test_a_merged_delta_is_final_if_the_later_is() -> None:
    """Merging keeps the end of the stream."""
    assert Delta(("ab",), (2,), final=True) == Delta(("a",), (1,)) + Delta(("b",), (1,), final=True)


def test_deltas_of_different_requests_do_not_merge() -> None:
    """Deltas with different numbers of sequences are a mistake of ours, and raise."""
    with pytest.raises(ValueError, match="zip"):
        Delta(("a",), (1,)) + Delta(("a", "b"), (1, 1))

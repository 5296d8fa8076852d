"""The page of reasoning parsers shows what was measured, and the cases mean what it says."""

from __future__ import annotations

import pytest

from parsers_page import SHOWN
from parsers_trial import Said
from reasoning_parsers_cases import ANSWER, CASES, REASONING
from reasoning_parsers_formats import FORMATS, NOT_TRIED
from reasoning_parsers_table import PAGE, difference, verdict

MEASURED = PAGE.measured()
BY_NAME = {case.name: case for case in CASES}


def test_the_docs_have_the_table() -> None:
    """As ``scripts/reasoning_parsers_table.py --docs`` writes it."""
    assert PAGE.tables(MEASURED) == PAGE.shown()


def test_each_measured_parser_has_a_format() -> None:
    """And the page names those that are not tried, and each case."""
    assert {name for parsers in MEASURED.values() for name in parsers} == set(FORMATS)
    assert SHOWN in MEASURED
    page = PAGE.docs.read_text(encoding="utf-8")
    assert [] == [name for name in NOT_TRIED if f"`{name}`" not in page]
    assert [] == [name for name in BY_NAME if name not in page]


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_has_what_the_case_says(name: str) -> None:
    """The reasoning before the answer, and all marks filled in."""
    for case in CASES:
        text = FORMATS[name].written(case)
        assert text.find(case.reasoning) <= text.find(case.answer) or not case.answer
        assert [] == [mark for mark in ("{start}", "{end}", "{answer}") if mark in text]


@pytest.mark.parametrize(
    ("case", "reasoning", "content", "expected"),
    [
        ("well formed", REASONING, ANSWER, "right"),
        ("well formed", f"{REASONING}\n", f"\n\n{ANSWER}", "right"),
        ("well formed", "", REASONING + ANSWER, "reasoning in the content"),
        ("well formed", REASONING + ANSWER, "", "answer in the reasoning"),
        ("well formed", REASONING, "", "answer lost"),
        ("well formed", "", ANSWER, "reasoning lost"),
        ("well formed", f"<think>{REASONING}", ANSWER, "marks in the reasoning"),
        ("cut", "Two and two", "", "right"),
        ("no marks", ANSWER, "", "answer in the reasoning"),
        ("second end mark", REASONING, f"{ANSWER}</think>I am sure.", "marks in the content"),
        ("second end mark", REASONING, "I am sure.", "answer lost"),
        ("well formed", REASONING, ANSWER + ANSWER, "text twice"),
    ],
)
def test_a_verdict_names_what_differs(
    case: str, reasoning: str, content: str, expected: str
) -> None:
    """The place of each part, then marks that are left."""
    assert expected == verdict(BY_NAME[case], Said(content, (), reasoning))


@pytest.mark.parametrize(
    ("streamed", "expected"),
    [
        (Said("It is 4.", (), "Four."), "same"),
        (Said("\nIt is 4.", (), "Four."), "newlines"),
        (Said("It is 4.Four."), "text"),
        ("ValueError", "text"),
    ],
    ids=["same", "newlines", "text", "error"],
)
def test_a_difference_is_one_of_newlines_or_of_text(streamed: Said | str, expected: str) -> None:
    """Of a stream from the whole answer."""
    assert expected == difference(Said("It is 4.", (), "Four."), streamed)

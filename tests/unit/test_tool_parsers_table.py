"""The page of tool parsers shows what was measured, and the cases mean what it says."""

from __future__ import annotations

import json

import pytest

from parsers_page import SHOWN
from parsers_trial import Said
from tool_parsers_cases import CASES, CUT, PARIS, Case
from tool_parsers_formats import FORMATS, NOT_TRIED
from tool_parsers_table import PAGE, cut_verdict, verdict, written

MEASURED = PAGE.measured()
CALL = Case("call", [PARIS], before="Let me look.")
ARGUMENTS = json.dumps(PARIS[1])


def test_the_docs_have_the_tables() -> None:
    """As ``scripts/tool_parsers_table.py --docs`` writes them."""
    assert PAGE.tables(MEASURED) == PAGE.shown()


def test_each_measured_parser_has_a_format() -> None:
    """And the page names those that are not tried."""
    assert {name for parsers in MEASURED.values() for name in parsers} == set(FORMATS)
    page = PAGE.docs.read_text(encoding="utf-8")
    assert [] == [name for name in NOT_TRIED if f"`{name}`" not in page]
    assert SHOWN in MEASURED


@pytest.mark.parametrize("name", FORMATS)
def test_a_cut_text_ends_within_the_first_argument(name: str) -> None:
    """It has the text before the call and the beginning of "Paris"."""
    text = written(FORMATS[name], CUT)
    assert CUT.before in text
    assert text.endswith("Par")


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_has_what_the_case_says(name: str) -> None:
    """Each call's name and the text beside it."""
    for case in CASES:
        if case is not CUT:
            text = written(FORMATS[name], case)
            assert case.before in text
            assert case.after in text
            assert all(call in text for call, _ in case.calls)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said(" Let me look.\n", [("weather", ARGUMENTS)]), "right"),
        (Said("", [("weather", ARGUMENTS)]), "text lost"),
        (Said("Let me look.<call>", [("weather", ARGUMENTS)]), "marks in the text"),
        (Said("Let me look.", []), "no call"),
        (Said("Let me look.", [("rain", "{}")]), "another name, other arguments"),
        (Said("Let me look.", [("weather", "{")]), "arguments not JSON"),
        (Said("Let me look.", [("weather", "")]), "arguments empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_verdict_names_what_differs(said: Said, expected: str) -> None:
    """In calls first, then in the text."""
    assert expected == verdict(CALL, said)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said("Let me look.", []), "no call"),
        (Said("Let me look.<call>", []), "no call, the text"),
        (Said("", [("weather", '{"city": "Par')]), "a part of the call"),
        (Said("", [("weather", "{}")]), "a call with `{}`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cut_call_gives_one_of_these(said: Said, expected: str) -> None:
    """A call with valid arguments is what a client would use by mistake."""
    assert expected == cut_verdict(said)

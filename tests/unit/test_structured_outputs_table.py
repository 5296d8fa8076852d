"""What docs and code say of structured-output libraries is what was measured."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from structured_outputs_cases import SCHEMAS, Case
from structured_outputs_table import BEGIN, CELLS, DOCS, END, table
from triton_vllm.limits.schema_support import departures

MEASURED = json.loads(CELLS.read_text(encoding="utf-8"))
COLUMNS = {
    "xgrammar 0.2.8": "xgrammar",
    "llguidance 1.7.6": "guidance",
}
# Narrowed for every schema alike: no keyword says it, or the value can be written in another way.
OF_NO_KEYWORD = {
    "properties in another order",
    "properties and others",
    "properties without type",
    "type, an integer as 1.0",
    "const, an object",
}
IN_ANOTHER_WAY = {  # the same value with other characters
    ("guidance", "minimum: number, an exponent"),
    ("guidance", "minLength, maxLength: escapes"),
}


@pytest.mark.parametrize("case", SCHEMAS, ids=lambda case: case.name)
def test_the_cases_are_json_schema(case: Case) -> None:
    """What a case allows and forbids is what the library jsonschema says."""
    validator = jsonschema.Draft202012Validator(case.given)
    valid = [validator.is_valid(json.loads(text)) for text in case.allowed]
    assert [True] * len(valid) == valid
    if case.name.startswith(("format", "pattern, quotes", "pattern, a newline")):
        return  # formats need more packages; the others forbid texts that are no JSON
    invalid = [validator.is_valid(json.loads(text)) for text in case.forbidden]
    assert [False] * len(invalid) == invalid


@pytest.mark.parametrize(("column", "library"), COLUMNS.items())
def test_what_is_not_enforced_is_known(column: str, library: str) -> None:
    """The setting that refuses schemas finds each keyword that the table calls ignored or so."""
    unknown = [
        case.name
        for case in SCHEMAS
        if MEASURED[column]["schema"][case.name] not in ("enforced", "refused")
        and case.name not in OF_NO_KEYWORD
        and (library, case.name) not in IN_ANOTHER_WAY
        and not departures(case.given, library)
    ]
    assert [] == unknown


def test_what_is_enforced_is_served() -> None:
    """Keywords that xgrammar enforces pass, but for those that it enforces only in part."""
    partly = ("oneOf", "multipleOf", "imum: number", "Length")
    refused = [
        case.name
        for case in SCHEMAS
        if MEASURED["xgrammar 0.2.8"]["schema"][case.name] == "enforced"
        and not any(name in case.name for name in partly)
        and departures(case.given, "xgrammar")
    ]
    assert [] == refused


def test_the_docs_have_the_table() -> None:
    """As ``scripts/structured_outputs_table.py --docs`` writes it."""
    _, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    shown, end, _ = rest.partition(END)
    assert end
    assert table(MEASURED) == shown.strip()


def test_a_place_is_a_json_pointer() -> None:
    """With keys escaped, however deep the keyword is."""
    schema: dict[str, Any] = {"properties": {"a/b": {"items": {"anyOf": [{"not": {}}]}}}}
    (found,) = departures(schema, "xgrammar")
    assert ("/properties/a~1b/items/anyOf/0/not", "not") == (found.pointer, found.keyword)

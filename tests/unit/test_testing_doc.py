"""docs/testing.md: each test that it names exists, and runs when the page says so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \| `(tests/\S+\.py)::(\w+)` \| (.+) \|$", DOCUMENT, re.MULTILINE)


def marks(nodes: list[ast.expr]) -> str:
    return " ".join(ast.unparse(node) for node in nodes)


def run_of(module: Path, name: str) -> str:
    """Return when a test runs, as its marks say it. Raises KeyError if there is no such test."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    named = {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    test = named[name]
    of_module = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and "pytestmark" in marks(node.targets)
    ]
    decorators = test.decorator_list
    if "slow" in marks(of_module) or "pytest.mark.slow" in [ast.unparse(d) for d in decorators]:
        return "nightly"
    # The cases of a parametrized test may come from a function beside it.
    used = {n.id for d in decorators for n in ast.walk(d) if isinstance(n, ast.Name)}
    makers = [statement for name in used & named.keys() for statement in named[name].body]
    cases = marks(decorators) + " ".join(ast.unparse(statement) for statement in makers)
    return "more nightly" if "slow" in cases else "each run"


def test_the_rows_are_found() -> None:
    """The search, on which the others rest, sees every row that names a test."""
    assert len(ROWS) == len(re.findall(r"^\|.*`tests/\S+::", DOCUMENT, re.MULTILINE))
    assert len(ROWS) > 50


@pytest.mark.parametrize(("promise", "module", "name", "run"), ROWS, ids=[row[2] for row in ROWS])
def test_a_promise_has_its_test(promise: str, module: str, name: str, run: str) -> None:
    """The test is in the file, and its marks put it into the run of the table."""
    assert run == run_of(ROOT / module, name), promise


def test_each_test_of_the_reliability_page_is_there() -> None:
    """Its last column names tests: by name, by its beginning, or by file."""
    text = (ROOT / "docs/operations/reliability.md").read_text(encoding="utf-8")
    faults = text.partition("## Faults")[2].partition("\n## ")[0]
    cells = [line.rstrip(" |").rpartition("|")[2] for line in faults.splitlines()]
    named = {name for cell in cells for name in re.findall(r"`([\w/.]*test_[\w.]*)`", cell)}
    assert len(named) > 20
    there = [f"{module}::{name}" for _, module, name, _ in ROWS]
    missing = {n for n in named if not any(re.search(rf"\b{n.strip('.')}", row) for row in there)}
    assert set() == missing


def test_each_kind_of_model_in_the_page_of_requests_is_there() -> None:
    """Its curl lines name the model that they ask; each of them has a row."""
    text = (ROOT / "docs/requests.md").read_text(encoding="utf-8")
    models = set(re.findall(r"`curl (\$[A-Z]+)/", text))
    assert set() == {model for model in models if f"`{model}`" not in DOCUMENT}


def test_each_promise_is_there_once() -> None:
    """No two rows promise the same."""
    assert len(ROWS) == len({promise for promise, *_ in ROWS})

"""docs/architecture.md shows the ways through the code as they are, and they stay short."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs/architecture.md"
MODEL = ROOT / "model_repository/vllm/1"
WAYS = {"The life of a request": (18, 15), "Unload and shutdown": (8, 8)}
STEP = re.compile(r"^(\d+)\. `([\w/]+\.py)`: `([\w.]+)` ", re.MULTILINE)


def steps(heading: str) -> list[tuple[int, str, str]]:
    """Return the numbered steps of a section: number, file, function."""
    section = re.split(r"^## ", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{heading}\n"))
    return [(int(number), file, function) for number, file, function in STEP.findall(text)]


def functions(file: str) -> set[str]:
    """Return the functions and methods of a file, as ``Class.method``."""
    path = MODEL / file if file == "model.py" else MODEL / "triton_vllm" / file
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (ast.FunctionDef, ast.AsyncFunctionDef)
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, methods)}
    return found


@pytest.mark.parametrize("heading", WAYS)
def test_each_step_exists(heading: str) -> None:
    """Whoever follows the list finds each function in its file."""
    listed = steps(heading)
    missing = [f"{file}: {name}" for _, file, name in listed if name not in functions(file)]
    assert listed
    assert [] == missing


@pytest.mark.parametrize(("heading", "most"), WAYS.items())
def test_a_way_is_short(heading: str, most: tuple[int, int]) -> None:
    """In steps, which are numbered without a gap, and in files."""
    listed = steps(heading)
    assert list(range(1, len(listed) + 1)) == [number for number, _, _ in listed]
    assert len(listed) <= most[0]
    assert len({file for _, file, _ in listed}) <= most[1]

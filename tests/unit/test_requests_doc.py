"""docs/requests.md: its tables have a row for each tensor and each parameter of ours."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from triton_vllm.decoding import INPUTS
from triton_vllm.generation import EngineOptions
from triton_vllm.outputs import OUTPUTS, TEXTS

DOCUMENT = (Path(__file__).parents[2] / "docs/requests.md").read_text(encoding="utf-8")
INPUT_ROWS, _, REST = DOCUMENT.partition("\n## Outputs")
OUTPUT_ROWS, _, PARAMETER_ROWS = REST.partition("\n## Parameters")


def tensors(text: str) -> set[tuple[str, str, int]]:
    """Return name, type and size of the tensors that have a row."""
    found = re.findall(r"^\| `(\w+)` \| (\w+) \[(-?1)\] \|", text, re.MULTILINE)
    return {(name, datatype, int(size)) for name, datatype, size in found}


def test_each_input_has_a_row() -> None:
    """Those of the flags are the rows of the outputs that they ask for."""
    flags = {output.flag for output in OUTPUTS}
    expected = {(t.name, t.datatype, t.size) for t in INPUTS if t.name not in flags}
    assert expected == tensors(INPUT_ROWS)


def test_each_output_has_a_row() -> None:
    """Name, type and size are those of the table in the code."""
    expected = {(t.name, t.datatype, t.size) for t in (*TEXTS, *(o.tensor for o in OUTPUTS))}
    assert expected == tensors(OUTPUT_ROWS)


def test_each_option_has_a_row() -> None:
    """What stands among the sampling parameters and is none is explained."""
    rows = set(re.findall(r"^\| `(\w+)` \|", PARAMETER_ROWS, re.MULTILINE))
    assert {field.name for field in fields(EngineOptions)} <= rows

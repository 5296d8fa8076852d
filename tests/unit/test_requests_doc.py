"""docs/requests.md: its tables have a row for each tensor and each parameter of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from triton_vllm.protocol.outputs import OUTPUT_TENSORS, OUTPUTS
from triton_vllm.protocol.requests import EngineOptions
from triton_vllm.protocol.schema import INPUTS
from triton_vllm.protocol.tensors import Tensor

DOCUMENT = (Path(__file__).parents[2] / "docs/requests.md").read_text(encoding="utf-8")
INPUT_ROWS, _, REST = DOCUMENT.partition("\n## Outputs")
OUTPUT_ROWS, _, PARAMETER_ROWS = REST.partition("\n## Parameters")


def tensors(text: str) -> set[tuple[str, str, str]]:
    """Return name, type and dimensions of the tensors that have a row."""
    found = re.findall(r"^\| `(\w+)` \| (\w+) \[(-?1(?:, -1)?)\] \|", text, re.MULTILINE)
    return set(found)


def in_code(tensors: Iterable[Tensor]) -> set[tuple[str, str, str]]:
    return {(t.name, t.datatype, ", ".join(map(str, t.dims))) for t in tensors}


def test_each_input_has_a_row() -> None:
    """Those of the flags are the rows of the outputs that they ask for."""
    flags = {output.flag for output in OUTPUTS}
    expected = in_code(tensor for tensor in INPUTS if tensor.name not in flags)
    assert expected == tensors(INPUT_ROWS)


def test_each_output_has_a_row() -> None:
    """Name, type and size are those of the table in the code."""
    assert in_code(OUTPUT_TENSORS) == tensors(OUTPUT_ROWS)


def test_each_option_has_a_row() -> None:
    """What stands among the sampling parameters and is none is explained."""
    rows = set(re.findall(r"^\| `(\w+)` \|", PARAMETER_ROWS, re.MULTILINE))
    assert {field.name for field in fields(EngineOptions)} <= rows

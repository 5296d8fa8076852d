"""What of the engine can be tested without vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import triton_vllm
from triton_vllm.generation import Delta

PACKAGE = Path(triton_vllm.__file__).parents[1]

IMPORT_VLLM = """
from triton_vllm.engine import unusable_vllm
try:
    from triton_vllm import vllm_api
except ImportError as error:
    print(unusable_vllm(error))
"""


@dataclass
class Completion:
    """``vllm.outputs.CompletionOutput``."""

    index: int
    text: str
    token_ids: list[int]


@dataclass
class Output:
    """``vllm.outputs.RequestOutput``."""

    outputs: list[Completion] = field(default_factory=list)
    finished: bool = False


def test_an_empty_folder_named_vllm_is_said_in_a_line(tmp_path: Path) -> None:
    """The model repository's own folder vllm, imported in the package's place, is recognised."""
    (tmp_path / "vllm").mkdir()
    path = os.pathsep.join([str(PACKAGE), str(tmp_path)])
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_VLLM],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"import vllm found ['{tmp_path}/vllm'], which is not vLLM; needed is vLLM 0.26" in said


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output([Completion(1, "b", [7])]), Delta(("", "b", ""), (0, 1, 0))),
        (
            Output([Completion(2, "c", [7, 8]), Completion(0, "a", [9])], finished=True),
            Delta(("a", "", "c"), (1, 0, 2), final=True),
        ),
    ],
    ids=["one has news", "out of order"],
)
def test_each_sequence_keeps_its_place(output: Output, expected: Delta) -> None:
    """With n > 1 a text stands at its sequence's index, and nothing where nothing is new."""
    assert expected == Delta.of(output, 3)


def test_one_sequence() -> None:
    """With n = 1 the delta is vLLM's own."""
    assert Delta((" a",), (1,), final=True) == Delta.of(Output([Completion(0, " a", [5])], True), 1)

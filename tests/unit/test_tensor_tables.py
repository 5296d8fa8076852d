"""The tables of tensors and config.pbtxt say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol.outputs import OUTPUT_TENSORS
from triton_vllm.protocol.schema import INPUTS, POOLING, TRITON_VLLM_BACKEND, TUTORIAL_2023
from triton_vllm.protocol.tensors import Inputs, Tensor

CONFIG = Path(__file__).parents[2] / "model_repository/vllm/config.pbtxt"


def declared(part: str) -> set[tuple[str, str, str]]:
    """Return name, type and dimensions of the inputs or outputs that config.pbtxt declares."""
    text = CONFIG.read_text(encoding="utf-8")
    (block,) = re.findall(rf"^{part} \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \]', block)
    return set(found)


def as_declared(tensors: tuple[Tensor, ...]) -> set[tuple[str, str, str]]:
    return {(tensor.name, tensor.datatype, ", ".join(map(str, tensor.dims))) for tensor in tensors}


def test_the_inputs_are_those_of_the_configuration() -> None:
    """Each input that is read is declared, and no other."""
    assert as_declared(INPUTS) == declared("input")


def test_the_outputs_are_those_of_the_configuration() -> None:
    """Each output that may be sent is declared, and no other."""
    assert as_declared(OUTPUT_TENSORS) == declared("output")


def test_an_input_belongs_to_one_set_of_names() -> None:
    """Triton's backend's names, the tutorial's and those of pooling models are apart."""
    sets = (TRITON_VLLM_BACKEND.inputs, TUTORIAL_2023.inputs, POOLING.inputs)
    assert len(frozenset().union(*sets)) == sum(map(len, sets))


def test_integers() -> None:
    """An INT64 input becomes a list of Python's integers."""
    inputs = Inputs(FakeRequest({"input_ids": [1, 2]}))
    assert [1, 2] == inputs.integers("input_ids")
    assert {int} == {type(value) for value in inputs.integers("input_ids")}


def test_strings() -> None:
    """A STRING input of any length becomes a list, each element checked."""
    assert ["a", "é"] == Inputs(FakeRequest({"image": ["a", "é"]})).strings("image")
    with pytest.raises(RequestError, match="image: not UTF-8: byte 0xff at offset 1"):
        Inputs(FakeRequest({"image": ["a", b"b\xff"]})).strings("image")

"""The unit tests' fakes are the real vLLM, only smaller."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any

import pytest

from tests.unit.fakes import (
    FakeEngineArgs,
    FakeEngineArgsParser,
    FakeOutputKind,
    FakeSamplingParams,
    FakeStructuredOutputs,
    fake_vllm_api,
)
from triton_vllm.config.arguments import json_types
from triton_vllm.vllm_api import api as vllm_api

SAMPLING_FIELDS = [f.name for f in dataclasses.fields(FakeSamplingParams)]
OURS = {"structured_outputs", "output_kind"}  # their types are classes of vLLM
ENGINE_FIELDS = [f.name for f in dataclasses.fields(FakeEngineArgs)]


@pytest.mark.parametrize("name", sorted(vars(fake_vllm_api())))
def test_vllm_api_has_what_the_fake_has(name: str) -> None:
    """The real module has each name of the fake one."""
    assert hasattr(vllm_api, name)


@pytest.mark.parametrize("name", [name for name in SAMPLING_FIELDS if name not in OURS])
def test_a_sampling_parameter_has_the_fakes_type(name: str) -> None:
    """Each field of the fake SamplingParams has the type that vLLM gives it."""
    expected = typing.get_type_hints(FakeSamplingParams)[name]
    assert expected == vllm_api.param_types(vllm_api.SamplingParams)[name]


@pytest.mark.parametrize("name", [name for name in SAMPLING_FIELDS if name not in OURS])
def test_a_sampling_parameter_has_the_fakes_default(name: str) -> None:
    """Each field of the fake SamplingParams has vLLM's default, where none is vLLM's empty list."""
    actual = getattr(vllm_api.SamplingParams(), name)
    assert getattr(FakeSamplingParams(), name) == (None if actual == [] else actual)


def test_structured_outputs_is_an_object_like_the_fakes() -> None:
    """The field's class has the fake's fields, as keyword arguments."""
    (actual, _) = typing.get_args(
        vllm_api.param_types(vllm_api.SamplingParams)["structured_outputs"]
    )
    assert actual(regex="a+").regex == FakeStructuredOutputs(regex="a+").regex


def test_the_output_kinds_are_the_fakes() -> None:
    """RequestOutputKind has the fake's members."""
    expected = {kind.name: kind.value for kind in FakeOutputKind}
    assert expected == {kind.name: kind.value for kind in vllm_api.RequestOutputKind}


def test_a_negative_temperature_is_refused_as_by_the_fake() -> None:
    """Both classes check ranges when they are made, and say which."""
    with pytest.raises(ValueError, match="temperature must be non-negative, got -1"):
        FakeSamplingParams(temperature=-1)
    with pytest.raises(Exception, match="temperature must be non-negative, got -1"):
        vllm_api.SamplingParams(temperature=-1)


@pytest.mark.parametrize("name", ENGINE_FIELDS)
def test_an_engine_argument_takes_the_fakes_json(name: str) -> None:
    """Each field of the fake AsyncEngineArgs takes JSON types that vLLM's takes too."""
    expected = json_types(typing.get_type_hints(FakeEngineArgs)[name])
    assert expected <= json_types(vllm_api.engine_arg_types()[name])


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["--max-num-seqs=8"], "max_num_seqs", 8),
        (["--max-model-len=8k"], "max_model_len", 8000),
        (["--enforce-eager"], "enforce_eager", True),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--gpu-memory-utilization=0.5"], "gpu_memory_utilization", 0.5),
        (["--served-model-name", "a", "b"], "served_model_name", ["a", "b"]),
        (['--hf-overrides={"a": 1}'], "hf_overrides", {"a": 1}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
@pytest.mark.parametrize(
    "parser", [FakeEngineArgsParser, vllm_api.EngineArgsParser], ids=["fake", "real"]
)
def test_the_parsers_read_alike(
    parser: Any, arguments: list[str], name: str, expected: object
) -> None:
    """The fake parser reads each kind of option as vLLM's does."""
    assert expected == getattr(parser.create().parse_args(arguments), name)


@pytest.mark.parametrize(
    "parser", [FakeEngineArgsParser, vllm_api.EngineArgsParser], ids=["fake", "real"]
)
def test_the_parsers_raise(parser: Any) -> None:
    """A wrong value raises, with the option's name first, and never exits."""
    with pytest.raises(argparse.ArgumentTypeError, match="argument --max-num-seqs: invalid int"):
        parser.create().parse_args(["--max-num-seqs=many"])

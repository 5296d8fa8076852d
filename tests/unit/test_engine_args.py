"""Engine arguments: conversion, translation of dropped keys, and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import FakeEngineArgs
from triton_vllm.config.arguments import (
    DROPPED,
    as_arguments,
    is_true,
    json_types,
    translate_dropped,
)
from triton_vllm.errors import SettingsError
from triton_vllm.vllm_api.arguments import parse_engine_args

WHERE = "/models/vllm/vllm_engine_args.json"


class Config:
    """Stands for one of vLLM's config classes."""


def parse(given: dict[str, Any]) -> tuple[FakeEngineArgs, list[str]]:
    warnings: list[str] = []
    return parse_engine_args({"model": "m", **given}, WHERE, warnings.append), warnings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_num_seqs": 8}, 8),
        ({"max_num_seqs": "8"}, 8),
        ({"max_model_len": "8k"}, 8000),
        ({"gpu_memory_utilization": "0.5"}, 0.5),
        ({"gpu_memory_utilization": 1}, 1.0),
        ({"enforce_eager": True}, True),
        ({"enforce_eager": "true"}, True),
        ({"enforce_eager": "False"}, False),
        ({"enable_prefix_caching": False}, False),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"served_model_name": ["a", "b"]}, ["a", "b"]),
        ({"hf_overrides": {"a": {"b": 1}}}, {"a": {"b": 1}}),
        ({"hf_overrides": '{"a": 1}'}, {"a": 1}),
        ({"max_num_seqs": None}, None),
    ],
    ids=[
        "integer",
        "integer in a string",
        "as on the command line",
        "number in a string",
        "integer for a number",
        "boolean",
        "boolean in a string",
        "capitalised",
        "false where true may be vLLM's default",
        "choice",
        "array",
        "object",
        "object in a string",
        "null is vLLM's default",
    ],
)
def test_values_are_converted_by_the_fields_type(given: dict[str, Any], expected: object) -> None:
    """A value becomes what the field of AsyncEngineArgs takes."""
    args, warnings = parse(given)
    (name,) = given
    assert expected == getattr(args, name)
    assert [] == warnings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_modle_len": 1}, 'unknown key "max_modle_len", did you mean "max_model_len"?'),
        ({"zzz": 1}, 'unknown key "zzz"'),
        ({"max_num_seqs": "many"}, '"max_num_seqs": invalid int value: \'many\', got "many"'),
        ({"max_num_seqs": 1.5}, '"max_num_seqs": must be an integer, got 1.5'),
        ({"max_num_seqs": True}, '"max_num_seqs": must be an integer, got true'),
        ({"max_num_seqs": [8]}, '"max_num_seqs": must be an integer, got [8]'),
        ({"enforce_eager": "yes"}, '"enforce_eager": must be a boolean, got "yes"'),
        ({"enforce_eager": 1}, '"enforce_eager": must be a boolean, got 1'),
        ({"served_model_name": 1}, '"served_model_name": must be a string or an array, got 1'),
        ({"hf_overrides": [1]}, '"hf_overrides": must be an object, got [1]'),
        ({"dtype": "int1"}, "\"dtype\": invalid choice: 'int1' (choose from "),
        ({"model": None}, 'the key "model" is missing'),
    ],
    ids=[
        "near miss",
        "far miss",
        "no number",
        "fraction",
        "boolean for an integer",
        "array for an integer",
        "no boolean",
        "integer for a boolean",
        "integer for strings",
        "array for an object",
        "no such choice",
        "no model",
    ],
)
def test_wrong_engine_args_are_refused(given: dict[str, Any], expected: str) -> None:
    """A wrong key or value is one line with the file, the key, the reason and what came."""
    with pytest.raises(SettingsError) as raised:
        parse(given)
    assert str(raised.value).startswith(f"{WHERE}: ")
    assert expected in str(raised.value)
    assert 1 == len(str(raised.value).splitlines())


def test_a_missing_model_is_refused() -> None:
    """A file without a model is refused: vLLM's own default is never served by accident."""
    with pytest.raises(SettingsError, match='the key "model" is missing'):
        parse_engine_args({}, WHERE, pytest.fail)


@pytest.mark.parametrize(
    ("given", "expected", "warning"),
    [
        (
            {"disable_log_requests": "true"},
            {"enable_log_requests": False},
            'is read as "enable_log_requests": false',
        ),
        (
            {"disable_log_requests": False},
            {"enable_log_requests": True},
            'is read as "enable_log_requests": true',
        ),
        ({"swap_space": 4}, {}, '"swap_space" is ignored: vLLM has dropped it'),
        ({"worker_use_ray": "false"}, {}, '"worker_use_ray" is ignored'),
    ],
    ids=["string", "boolean", "nothing in its place", "a switch that is off"],
)
def test_dropped_keys_are_translated_with_a_warning(
    given: dict[str, Any], expected: dict[str, Any], warning: str
) -> None:
    """A key that this vLLM has no more becomes its successor, and the log says so."""
    warnings: list[str] = []
    known = {"model", "enable_log_requests"}
    assert expected == translate_dropped(given, known, WHERE, warnings.append)
    (line,) = warnings
    assert warning in line
    assert line.startswith(f"{WHERE}: ")


@pytest.mark.parametrize("key", sorted(DROPPED))
def test_a_key_that_vllm_still_has_is_not_translated(key: str) -> None:
    """What an older supported vLLM knows by its old name goes to it unchanged."""
    assert {key: 1} == translate_dropped({key: 1}, {key}, WHERE, pytest.fail)


@pytest.mark.parametrize(
    "given",
    [
        {"enable_log_requests": True, "disable_log_requests": True},
        {"disable_log_requests": True, "enable_log_requests": True},
    ],
    ids=["new key first", "old key first"],
)
def test_a_new_key_wins_over_its_old_name(given: dict[str, Any]) -> None:
    """Where a file has both names, the current one counts, in any order."""
    result = translate_dropped(given, {"enable_log_requests"}, WHERE, lambda line: None)
    assert {"enable_log_requests": True} == result


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("true", True), (" TRUE ", True), (False, False), ("false", False), (1, False)],
    ids=str,
)
def test_is_true(value: object, expected: bool) -> None:
    """Only true and its string are true."""
    assert expected is is_true(value)


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, {int}),
        (int | None, {int}),
        (Union[str, list[str], None], {str, list}),  # noqa: UP007 (as vLLM's hints come)
        (Annotated[int, "metadata"], {int}),
        (Literal["a", "b"], {str}),
        (Literal["a", 1], {str, int}),
        (dict[str, Any], {dict}),
        (tuple[int, ...], {list}),
        (set[str], {list}),
        (Config | dict[str, Any], {dict}),
        (Any, {bool, int, float, str, list, dict}),
    ],
    ids=lambda value: ",".join(sorted(t.__name__ for t in value))
    if isinstance(value, set)
    else str(value),
)
def test_json_types(hint: Any, expected: set[type]) -> None:
    """A field's type hint says which JSON types it takes."""
    assert expected == json_types(hint)


@given(st.text(), st.sampled_from([str, str | None, Literal["a"], str | list[str]]))
def test_a_string_is_one_argument(value: str, hint: Any) -> None:
    """No string of the file can be taken for another option."""
    assert [f"--dtype={value}"] == as_arguments("dtype", value, hint)

"""The operator's file: what is read, and what is refused with which line."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_vllm.config.files import read_json_object
from triton_vllm.config.settings import RENAMED, ModelSettings, ServingSettings
from triton_vllm.errors import SettingsError

CONTENT = 'the engine arguments, at least {"model": "..."}'
DECOUPLED = {"model_transaction_policy": {"decoupled": True}}


def triton_args(directory: Path, config: dict[str, Any] | None = None) -> dict[str, str]:
    """Return what Triton passes to initialize."""
    return {
        "model_repository": str(directory),
        "model_config": json.dumps(DECOUPLED if config is None else config),
        "model_name": "vllm",
        "model_version": "1",
    }


def write(directory: Path, content: str | bytes) -> Path:
    path = directory / "vllm_engine_args.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_file_is_split_into_engine_args_and_serving(tmp_path: Path) -> None:
    """The object "serving" is ours; everything else is vLLM's, as written."""
    path = write(
        tmp_path, '{"model": "m", "dtype": "auto", "serving": {"cancellation_poll_seconds": 3}}'
    )
    expected = ModelSettings(
        name="vllm",
        version="1",
        directory=tmp_path,
        engine_args={"model": "m", "dtype": "auto"},
        serving=ServingSettings(cancellation_poll_seconds=3),
    )
    actual = ModelSettings.from_triton(triton_args(tmp_path))
    assert expected == actual
    assert path == actual.engine_args_path


def test_serving_has_defaults(tmp_path: Path) -> None:
    """A file without "serving" gets the documented defaults."""
    write(tmp_path, '{"model": "m"}')
    assert ServingSettings() == ModelSettings.from_triton(triton_args(tmp_path)).serving


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], 1),
        ([{"count": 1, "kind": "KIND_MODEL"}], 1),
        ([{"count": 4}], 4),
        ([{"count": 2}, {"count": 1}, {}], 4),
        ([{"count": 0}], 1),
    ],
    ids=["none", "one", "four", "several groups", "zero"],
)
def test_front_ends_are_counted(
    tmp_path: Path, groups: list[dict[str, Any]], expected: int
) -> None:
    """The number of front ends is the sum over the instance groups, at least one."""
    write(tmp_path, '{"model": "m"}')
    args = triton_args(tmp_path, {**DECOUPLED, "instance_group": groups})
    assert expected == ModelSettings.from_triton(args).front_ends


def test_the_engine_arguments_of_tritons_own_backend(tmp_path: Path) -> None:
    """1/model.json is read where there is no vllm_engine_args.json."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.json").write_text('{"model": "m", "serving": {"sender_threads": 3}}')
    settings = ModelSettings.from_triton(triton_args(tmp_path, DECOUPLED))
    assert ("m", 3) == (settings.engine_args["model"], settings.serving.sender_threads)
    assert tmp_path / "1/model.json" == settings.engine_args_path


def test_two_files_of_engine_arguments_are_refused(tmp_path: Path) -> None:
    """Nobody has to guess which of the two counts."""
    write(tmp_path, '{"model": "m"}')
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.json").write_text('{"model": "n"}')
    with pytest.raises(SettingsError, match=r"model\.json: .*vllm_engine_args\.json exists too"):
        ModelSettings.from_triton(triton_args(tmp_path, DECOUPLED))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, True),
        ({"REPORT_CUSTOM_METRICS": {"string_value": "yes"}}, True),
        ({"REPORT_CUSTOM_METRICS": {"string_value": "True"}}, True),
        ({"REPORT_CUSTOM_METRICS": {"string_value": "false"}}, False),
        ({"REPORT_CUSTOM_METRICS": {"string_value": " No "}}, False),
    ],
    ids=["absent", "yes", "true", "false", "no"],
)
def test_metrics_are_reported_unless_the_configuration_says_no(
    tmp_path: Path, parameters: dict[str, Any], expected: bool
) -> None:
    """The parameter of Triton's own vLLM backend turns metrics off; absent, they are on."""
    write(tmp_path, '{"model": "m"}')
    args = triton_args(tmp_path, {**DECOUPLED, "parameters": parameters})
    assert expected == ModelSettings.from_triton(args).report_metrics


def test_a_metrics_parameter_that_is_no_boolean_is_refused(tmp_path: Path) -> None:
    """The line names the file, the parameter and what came."""
    write(tmp_path, '{"model": "m"}')
    parameters = {"REPORT_CUSTOM_METRICS": {"string_value": "some"}}
    args = triton_args(tmp_path, {**DECOUPLED, "parameters": parameters})
    with pytest.raises(SettingsError, match=r'config.pbtxt: .*_METRICS must be .*, got "some"'):
        ModelSettings.from_triton(args)


def test_an_unknown_log_level_is_refused(tmp_path: Path) -> None:
    """The line lists the levels."""
    write(tmp_path, '{"model": "m", "serving": {"vllm_log_level": "quiet"}}')
    with pytest.raises(SettingsError, match=r'one of DEBUG, INFO, .*, got "quiet"'):
        ModelSettings.from_triton(triton_args(tmp_path))


def test_engine_cpus_must_be_a_string(tmp_path: Path) -> None:
    """A CPU list is a string, also when it is one number."""
    write(tmp_path, '{"model": "m", "serving": {"engine_cpu_affinity": 1}}')
    with pytest.raises(
        SettingsError, match=r'"serving.engine_cpu_affinity" must be a string, got 1'
    ):
        ModelSettings.from_triton(triton_args(tmp_path))


@pytest.mark.parametrize(
    "config",
    [{}, {"model_transaction_policy": {}}, {"model_transaction_policy": {"decoupled": False}}],
    ids=["no policy", "empty policy", "not decoupled"],
)
def test_a_model_that_is_not_decoupled_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    """Without the decoupled policy the load fails with a line that says what to add and where."""
    write(tmp_path, '{"model": "m"}')
    with pytest.raises(SettingsError) as raised:
        ModelSettings.from_triton(triton_args(tmp_path, config))
    assert str(tmp_path / "config.pbtxt") in str(raised.value)
    assert "decoupled: true" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"model": "m",}', "not JSON: .*line 1, column 1[45]"),
        ('{\n"model" "m"\n}', "not JSON: .*line 2, column 9"),
        ("", "not JSON: Expecting value .line 1, column 1"),
        ("[]", "must hold a JSON object, holds list"),
        ("null", "must hold a JSON object, holds NoneType"),
        (b'{"model": "\xff"}', "cannot be read: .*utf-8"),
        ('{"model": "a", "model": "b"}', 'the key "model" is given twice'),
        ("[" * 100_000, "cannot be read|not JSON"),
    ],
    ids=[
        "trailing comma",
        "no colon",
        "empty",
        "array",
        "null",
        "not UTF-8",
        "key twice",
        "too deep",
    ],
)
def test_a_malformed_file_is_said_with_its_place(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    """A file that is no JSON object raises one line with its path and, where known, the place."""
    path = write(tmp_path, content)
    with pytest.raises(SettingsError, match=expected) as raised:
        read_json_object(path, CONTENT)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_file_is_said_with_what_it_should_hold(tmp_path: Path) -> None:
    """A missing file raises one line with its path and the least that it must hold."""
    path = tmp_path / "vllm_engine_args.json"
    with pytest.raises(
        SettingsError, match=re.escape(f"{path}: no such file") + '.*{"model": "..."}'
    ):
        read_json_object(path, CONTENT)


def test_a_folder_in_the_files_place_is_said(tmp_path: Path) -> None:
    """What cannot be read at all raises one line with the system's reason."""
    with pytest.raises(SettingsError, match=r"cannot be read: .*[Dd]irectory"):
        read_json_object(tmp_path, CONTENT)


@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        ([], '"serving" must be an object, got []'),
        (
            {"cancellation_pol_seconds": 1},
            '"cancellation_pol_seconds", did you mean "cancellation_poll_seconds"?',
        ),
        ({"zzz": 1}, '"serving": unknown key "zzz", allowed: sender_threads, '),
        (
            {"sender_threads": "4"},
            '"serving.sender_threads" must be an integer from 0 to 64, got "4"',
        ),
        (
            {"sender_threads": True},
            '"serving.sender_threads" must be an integer from 0 to 64, got true',
        ),
        (
            {"sender_threads": 1.5},
            '"serving.sender_threads" must be an integer from 0 to 64, got 1.5',
        ),
        (
            {"sender_threads": 65},
            '"serving.sender_threads" must be an integer from 0 to 64, got 65',
        ),
        (
            {"cancellation_poll_seconds": -1},
            '"serving.cancellation_poll_seconds" must be a number from 0.01 to 60, got -1',
        ),
        (
            {"cancellation_poll_seconds": None},
            '"serving.cancellation_poll_seconds" must be a number from 0.01 to 60, got null',
        ),
        (
            {"cancellation_poll_seconds": 0},
            '"serving.cancellation_poll_seconds" must be a number from 0.01 to 60, got 0',
        ),
    ],
    ids=[
        "array",
        "near miss",
        "far miss",
        "string",
        "boolean",
        "fraction",
        "too high",
        "too low",
        "null",
        "never sleeping",
    ],
)
def test_wrong_serving_settings_are_refused(serving: object, expected: str) -> None:
    """A wrong key or value names the file, the key and what is allowed."""
    with pytest.raises(SettingsError) as raised:
        ServingSettings.from_json(serving, "f.json")
    assert str(raised.value).startswith("f.json: ")
    assert expected in str(raised.value)


def test_nan_is_no_number_of_seconds(tmp_path: Path) -> None:
    """NaN, which Python's JSON accepts, is out of every range."""
    with pytest.raises(SettingsError, match="got NaN"):
        ServingSettings.from_json({"cancellation_poll_seconds": float("nan")}, "f.json")


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_fails_the_load_with_the_new_one(name: str) -> None:
    """It is neither read nor taken for an unknown key."""
    line = f'f.json: "serving.{name}" is now called "{RENAMED[name]}"'
    with pytest.raises(SettingsError) as raised:
        ServingSettings.from_json({name: 1}, "f.json")
    assert line == str(raised.value)


def test_the_new_names_exist() -> None:
    """What an old name's line says can be written."""
    assert set() == set(RENAMED.values()) - {f.name for f in fields(ServingSettings)}


LIMITED = {f.name: f.metadata for f in fields(ServingSettings) if "ge" in f.metadata}
numbers = st.integers(-1, 70) | st.floats(allow_nan=True) | st.booleans() | st.none() | st.text()


@given(st.dictionaries(st.sampled_from(list(LIMITED)), numbers))
def test_serving_settings_are_in_range_or_refused(given_settings: dict[str, Any]) -> None:
    """Whatever "serving" holds, the result keeps its limits, or SettingsError is raised."""
    try:
        settings = ServingSettings.from_json(given_settings, "f.json")
    except SettingsError:
        return
    for key, value in given_settings.items():
        assert value == getattr(settings, key)
        assert not isinstance(value, bool)
        assert LIMITED[key]["ge"] <= value <= LIMITED[key]["le"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_a_json_object_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    """Any JSON object comes back unchanged, whatever alphabet it uses."""
    path = write(tmp_path_factory.mktemp("settings"), json.dumps(content, ensure_ascii=False))
    assert content == read_json_object(path, CONTENT)


@given(st.text())
def test_any_text_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    """No content of the file raises anything but SettingsError, in one line."""
    path = write(tmp_path_factory.mktemp("settings"), content)
    try:
        lines = [str(read_json_object(path, CONTENT))]
    except SettingsError as error:
        lines = str(error).splitlines()
    assert 1 == len(lines)

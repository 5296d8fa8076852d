"""Engine arguments, parsed by the real AsyncEngineArgs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.arguments import parse_engine_args

WHERE = "/models/vllm/vllm_engine_args.json"
SHIPPED = Path(__file__).resolve().parents[2] / "model_repository/vllm/vllm_engine_args.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in place of a model. The test reads no file of it."""
    return str(tmp_path_factory.mktemp("model"))


def parse(model: str, given: dict[str, Any]) -> tuple[Any, list[str]]:
    warnings: list[str] = []
    return parse_engine_args({"model": model, **given}, WHERE, warnings.append), warnings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"enforce_eager": "true"}, True),
        ({"enforce_eager": "False"}, False),
        ({"enforce_eager": True}, True),
        ({"enable_prefix_caching": False}, False),
        ({"gpu_memory_utilization": "0.5"}, 0.5),
        ({"gpu_memory_utilization": 1}, 1.0),
        ({"max_num_seqs": "8"}, 8),
        ({"max_model_len": 512}, 512),
        ({"max_model_len": "8k"}, 8000),
        ({"kv_cache_memory_bytes": 268435456}, 268435456),
        ({"tensor_parallel_size": "2"}, 2),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"served_model_name": "a"}, ["a"]),
        ({"served_model_name": ["a", "b"]}, ["a", "b"]),
        ({"hf_overrides": {"a": {"b": 1}}}, {"a": {"b": 1}}),
        ({"override_generation_config": {"temperature": 0.5}}, {"temperature": 0.5}),
        ({"limit_mm_per_prompt": {"image": 2}}, {"image": 2}),
        ({"seed": "1"}, 1),
    ],
    ids=json.dumps,
)
def test_values_are_converted_by_the_fields_type(
    model: str, given: dict[str, Any], expected: object
) -> None:
    """A value becomes what vLLM's own command line would make of it."""
    args, warnings = parse(model, given)
    (name,) = given
    assert expected == getattr(args, name)
    assert [] == warnings


@pytest.mark.parametrize("as_string", [False, True], ids=["object", "string"])
def test_a_nested_config_is_built(model: str, as_string: bool) -> None:
    """An object, or its JSON in a string, becomes vLLM's config class."""
    config = {"cudagraph_capture_sizes": [1, 2]}
    given = {"compilation_config": json.dumps(config) if as_string else config}
    args, _ = parse(model, given)
    assert [1, 2] == args.compilation_config.cudagraph_capture_sizes


def test_null_is_vllms_default(model: str) -> None:
    """A key with null is as good as none."""
    given = {"max_num_seqs": None, "gpu_memory_utilization": None, "dtype": None}
    args, _ = parse(model, given)
    plain, _ = parse(model, {})
    assert [getattr(plain, name) for name in given] == [getattr(args, name) for name in given]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_modle_len": 1}, 'unknown key "max_modle_len", did you mean "max_model_len"?'),
        ({"max_num_seqs": "many"}, '"max_num_seqs": invalid int value: \'many\', got "many"'),
        ({"max_num_seqs": True}, '"max_num_seqs": must be an integer, got true'),
        ({"max_num_seqs": [8]}, '"max_num_seqs": must be an integer, got [8]'),
        ({"max_num_seqs": 1.5}, '"max_num_seqs": must be an integer, got 1.5'),
        ({"max_model_len": "8q"}, '"max_model_len": invalid'),
        ({"enforce_eager": "yes"}, '"enforce_eager": must be a boolean, got "yes"'),
        ({"dtype": "int1"}, "\"dtype\": invalid choice: 'int1' (choose from"),
        ({"model": 7}, '"model": must be a string, got 7'),
        ({"compilation_config": 3}, '"compilation_config": must be an object, got 3'),
        ({"compilation_config": {"mod": 0}}, '"compilation_config": '),
        ({"model": None}, 'the key "model" is missing'),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_engine_args_are_refused(model: str, given: dict[str, Any], expected: str) -> None:
    """A wrong key or value is one line with the file, the key, the reason and what came."""
    with pytest.raises(SettingsError) as raised:
        parse(model, given)
    assert str(raised.value).startswith(f"{WHERE}: ")
    assert expected in str(raised.value)
    assert 1 == len(str(raised.value).splitlines())


def test_a_missing_model_is_refused() -> None:
    """An empty object does not serve vLLM's own default model."""
    with pytest.raises(SettingsError, match='the key "model" is missing'):
        parse_engine_args({}, WHERE, pytest.fail)


def test_an_unknown_model_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a model that is not on the disk is one line with the file and the model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match='model "no/such-model": ') as raised:
        parse("no/such-model", {})
    assert 1 == len(str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"disable_log_requests": "true"}, 'is read as "enable_log_requests": false'),
        ({"swap_space": 4}, '"swap_space" is ignored: vLLM has dropped it'),
        ({"guided_decoding_backend": "auto"}, 'is read as "structured_outputs_config"'),
        ({"device": "cpu"}, '"device" is ignored'),
    ],
    ids=["disable_log_requests", "swap_space", "guided_decoding_backend", "device"],
)
def test_dropped_keys_do_not_fail_the_load(model: str, given: dict[str, Any], warning: str) -> None:
    """A key that vLLM has dropped is translated or ignored, and a warning says so."""
    (name,) = given
    assert name not in vllm_api.engine_arg_types()
    _, warnings = parse(model, given)
    (line,) = warnings
    assert warning in line


def test_the_shipped_file_is_right(model: str) -> None:
    """The repository's own vllm_engine_args.json parses, with the translation it is known for."""
    shipped = json.loads(SHIPPED.read_text())
    args, _ = parse(model, {**shipped, "model": model})
    assert args.enable_log_requests is False

"""What a config.pbtxt leaves out is filled in, quickly, and what it says is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton_vllm
from triton_vllm.protocol.outputs import OUTPUT_TENSORS
from triton_vllm.protocol.schema import INPUTS, complete_config

PACKAGE = Path(triton_vllm.__file__).parents[1]


class FakeConfig:
    """``pb_utils.ModelConfig``."""

    def __init__(
        self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **declared: Any
    ) -> None:
        self.inputs, self.outputs, self.declared = inputs, outputs, declared
        self.decoupled = False
        self.max_batch_size = -1

    def as_dict(self) -> dict[str, Any]:
        return {"input": list(self.inputs), "output": list(self.outputs), **self.declared}

    def add_input(self, tensor: dict[str, Any]) -> None:
        self.inputs.append(tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        self.outputs.append(tensor)

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self.decoupled = policy["decoupled"]

    def set_max_batch_size(self, size: int) -> None:
        self.max_batch_size = size


def test_an_empty_configuration_is_filled() -> None:
    """A folder for Triton's own backend declares nothing, and gets every tensor."""
    config = FakeConfig([], [])
    assert config is complete_config(config)
    assert [tensor.name for tensor in INPUTS] == [each["name"] for each in config.inputs]
    assert len(OUTPUT_TENSORS) == len(config.outputs)
    assert (True, 0) == (config.decoupled, config.max_batch_size)
    expected = {"name": "stream", "data_type": "TYPE_BOOL", "dims": [1], "optional": True}
    assert expected in config.inputs
    assert {"name": "cumulative_logprob", "data_type": "TYPE_FP32", "dims": [-1]} in config.outputs


def test_what_is_declared_is_kept() -> None:
    """An input that the operator declares, perhaps as required, stays as it is."""
    declared = {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1], "optional": False}
    config = FakeConfig([declared.copy()], [])
    complete_config(config)
    assert [declared] == [each for each in config.inputs if each["name"] == "text_input"]


def test_a_declared_policy_is_left_to_the_model() -> None:
    """Triton would refuse to change it, in words that name no file; the model names it."""
    config = FakeConfig([], [], model_transaction_policy={"decoupled": False})
    complete_config(config)
    assert not config.decoupled


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Triton imports the model once more for this; vLLM, torch and pydantic stay outside."""
    (tmp_path / "triton_python_backend_utils.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import model, sys; print(*sys.modules)"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE)])},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert "triton_vllm" in imported
    assert set() == imported & {"vllm", "torch", "pydantic", "transformers", "prometheus_client"}

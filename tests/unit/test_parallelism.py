"""How many GPUs the engine arguments ask for, and what is said where they are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.topology.gpus import Parallelism, check_gpus

DEFAULTS: dict[str, Any] = {
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "data_parallel_size": 1,
    "data_parallel_size_local": None,
    "data_parallel_rank": None,
    "data_parallel_external_lb": False,
    "distributed_executor_backend": None,
    "nnodes": 1,
}


def of(**changes: Any) -> Parallelism:
    return Parallelism.of(SimpleNamespace(**DEFAULTS | changes))


@pytest.mark.parametrize(
    ("changes", "here", "spread"),
    [
        ({}, 1, False),
        ({"tensor_parallel_size": 2}, 2, False),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6, False),
        ({"tensor_parallel_size": 2, "data_parallel_size": 2}, 4, False),
        ({"data_parallel_size": 4, "data_parallel_size_local": 1}, 1, True),
        ({"data_parallel_size": 4, "data_parallel_size_local": 0}, 0, True),
        ({"data_parallel_size": 4, "data_parallel_rank": 2}, 1, True),
        ({"tensor_parallel_size": 4, "nnodes": 2}, 2, True),
        ({"tensor_parallel_size": 4, "distributed_executor_backend": "ray"}, None, False),
        ({"data_parallel_size": 2, "distributed_executor_backend": "ray"}, None, False),
    ],
    ids=str,
)
def test_gpus_of_this_machine(changes: dict[str, Any], here: int | None, *, spread: bool) -> None:
    """What the arguments ask of this machine, as vLLM reads them."""
    parallelism = of(**changes)
    assert (here, spread) == (parallelism.here, parallelism.is_spread)


def check(parallelism: Parallelism, devices: str = "", seen: int | None = None) -> None:
    check_gpus(parallelism, devices, lambda: seen, "/m/f.json")


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: what is asked for and by which arguments, what there is and why."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SettingsError) as raised:
        check(of(tensor_parallel_size=2, data_parallel_size=2), seen=1)
    assert (
        '/m/f.json: the engine arguments ask for 4 GPUs ("tensor_parallel_size": 2, '
        '"data_parallel_size": 2), and 1 can be seen here'
    ) == str(raised.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        SettingsError, match=r"ask for 1 GPU, and 0 .* \(CUDA_VISIBLE_DEVICES is \"\"\)"
    ):
        check(of(), seen=0)


@pytest.mark.parametrize(
    ("devices", "seen"), [("", 2), ("", 8), ("", None), ("2,3", 2), ("0,1", None)]
)
def test_enough_gpus(devices: str, seen: int | None) -> None:
    """Two of two, or of more, or a vLLM that runs on the CPU."""
    check(of(tensor_parallel_size=2), devices, seen)


@pytest.mark.parametrize("devices", ["0", "0,1,2"])
def test_sets_fit_the_engine(devices: str) -> None:
    """A set of another size would leave a GPU idle, or the engine without."""
    with pytest.raises(SettingsError, match=f"ask for 2 GPUs .*gives . to each engine .{devices}"):
        check(of(tensor_parallel_size=2), devices)


def test_ray_chooses_for_itself() -> None:
    """Where Ray places workers on GPUs, config.pbtxt cannot."""
    with pytest.raises(SettingsError, match="Ray places the engine by itself"):
        check(of(distributed_executor_backend="ray"), "0,1")
    check(of(distributed_executor_backend="ray", tensor_parallel_size=16), seen=0)

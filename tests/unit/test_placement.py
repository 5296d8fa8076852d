"""Which engines a model's instances make, and on which GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triton_vllm.config.placement import Placement, as_visible, parse_sets
from triton_vllm.errors import SettingsError

WHERE = Path("/m/config.pbtxt")
MODEL = {"kind": "KIND_MODEL"}
GPU = {"kind": "KIND_GPU"}


def place(
    groups: list[dict[str, Any]],
    devices: str = "",
    device_id: str = "0",
    visible: str | None = None,
) -> Placement:
    """Return the placement of one instance that Triton has put on GPU ``device_id``."""
    config: dict[str, Any] = {"instance_group": groups}
    if devices:
        config["parameters"] = {"gpu_device_ids": {"string_value": devices}}
    return Placement.from_triton(config, {"model_instance_device_id": device_id}, WHERE, visible)


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ([MODEL | {"count": 1}], "", Placement()),
        ([MODEL | {"count": 4}], "", Placement(front_ends=4, instances=4)),
        ([MODEL | {"count": 1}], "2", Placement(("2",), 0)),
        ([MODEL | {"count": 1}], "1,0", Placement(("1,0",), 0)),
        ([MODEL | {"count": 2}], "0,1;2,3", Placement(("0,1", "2,3"), None, 1, 2)),
        ([MODEL | {"count": 4}], "0;1", Placement(("0", "1"), None, 2, 4)),
        ([MODEL, MODEL], " 0 , 1 ; 02 , 3 ", Placement(("0,1", "2,3"), None, 1, 2)),
        ([MODEL | {"count": 2}], "GPU-8932f937;GPU-d72e", None),
    ],
    ids=["one", "front ends", "a GPU", "in order", "two by two", "shared", "spaces", "UUIDs"],
)
def test_sets_of_gpus_are_engines(
    groups: list[dict[str, Any]], devices: str, expected: Placement | None
) -> None:
    """A model has as many engines as sets; its processes share them evenly."""
    expected = expected or Placement(("GPU-8932f937", "GPU-d72e"), None, 1, 2)
    assert expected == place(groups, devices)


@pytest.mark.parametrize(
    ("groups", "device_id", "expected"),
    [
        ([GPU | {"count": 1, "gpus": [0]}], "0", Placement(("0",), 0)),
        ([GPU | {"count": 1, "gpus": [1]}], "1", Placement(("1",), 0)),
        ([GPU | {"count": 1, "gpus": [0, 1]}], "1", Placement(("0", "1"), 1, 1, 2)),
        ([GPU | {"gpus": [1]}, GPU | {"gpus": [0]}], "1", Placement(("0", "1"), 1, 1, 2)),
        ([GPU | {"count": 2, "gpus": [0, 1]}], "0", Placement(("0", "1"), 0, 2, 4)),
        (
            [GPU | {"gpus": [0]}, GPU | {"count": 3, "gpus": [1]}],
            "1",
            Placement(("0", "1"), 1, 3, 4),
        ),
    ],
    ids=["one", "not the first", "two GPUs", "two groups", "front ends", "uneven"],
)
def test_instances_on_gpus_are_engines(
    groups: list[dict[str, Any]], device_id: str, expected: Placement
) -> None:
    """KIND_GPU is an engine for each GPU, as Triton's users expect; Triton says which is ours."""
    assert expected == place(groups, device_id=device_id)


def test_sets_are_disjoint() -> None:
    """No two engines get the same GPU, whatever the server's own selection."""
    placement = place([MODEL | {"count": 2}], "0,1;2,3", visible="4,5,6,7")
    assert ("4,5", "6,7") == placement.devices


@pytest.mark.parametrize(
    ("groups", "devices", "expected"),
    [
        ([MODEL], "0,1;1,2", "has GPU 1 twice"),
        ([MODEL], "0;00", "has GPU 0 twice"),
        ([MODEL], "GPU-ab;GPU-AB", "has GPU gpu-ab twice"),
        ([MODEL], "0,;1", 'such as "0,1;2,3"'),
        ([MODEL], "0;", 'got "0;"'),
        ([MODEL], "0:1", 'got "0:1"'),
        ([MODEL], "-1", 'got "-1"'),
        ([MODEL], "٣", "by numbers or all by UUIDs"),
        ([MODEL], "0;GPU-ab", "by numbers or all by UUIDs"),
        ([MODEL], "MIG-ab,MIG-cd", "one MIG device in a set"),
        ([MODEL], "0;1", "has 1 instances, and gpu_device_ids 2 sets: 2 instances are needed"),
        ([MODEL | {"count": 3}], "0;1", "has 3 instances"),
        ([GPU | {"gpus": [0]}], "0", "KIND_MODEL"),
        ([GPU | {"gpus": [0]}, MODEL], "", "mixes KIND_GPU"),
        ([GPU], "", "the server has no GPU"),
    ],
)
def test_mistakes_are_said_in_a_line(
    groups: list[dict[str, Any]], devices: str, expected: str
) -> None:
    """The file, what came, and what is needed."""
    with pytest.raises(SettingsError, match=r"^/m/config\.pbtxt: ") as raised:
        place(groups, devices)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["MIG-ab;MIG-cd", "MIG-GPU-8932f937-d72c/1/0", "MIG-8932f937-d72c-4106-c12f-20bd9faed9f6"],
)
def test_mig_devices_are_sets_of_one(text: str) -> None:
    """Both of NVIDIA's forms of their names are known."""
    assert [[part] for part in text.split(";")] == parse_sets(text, "x")


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, "1"), ("", "1"), ("4, 6", "6"), ("GPU-a,GPU-b", "GPU-b")]
)
def test_a_gpu_is_counted_as_triton_counts(visible: str | None, expected: str) -> None:
    """Triton's GPU 1 is the second of those that Triton itself may see."""
    assert expected == as_visible("1", visible, WHERE)


def test_a_gpu_that_the_server_does_not_see() -> None:
    """A number beyond the server's own selection is refused, as CUDA would ignore it."""
    with pytest.raises(SettingsError, match=r"GPU 2 does not exist.* has 2"):
        as_visible("2", "4,6", WHERE)

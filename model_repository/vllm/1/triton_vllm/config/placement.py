"""The engines of a model, and the GPUs of each.

``instance_group`` counts processes. They are front ends, and share as many engines as there are
sets of GPUs. By default there is one. config.pbtxt sets more by the parameter ``gpu_device_ids``
("0,1;2,3": two engines on two GPUs each) or by instances of KIND_GPU (an engine for each GPU).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_vllm.errors import SettingsError

DEVICES_PARAMETER = "gpu_device_ids"
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Fa-f]+(-[0-9A-Fa-f]+)*|MIG-GPU-[0-9A-Fa-f-]+/\d+/\d+")


@dataclass(frozen=True, slots=True)
class Placement:
    """The engines of a model, and the number of front ends of each.

    ``devices[i]`` names engine i's GPUs as in CUDA_VISIBLE_DEVICES, empty where the only engine
    sees the server's. ``engine`` is the engine of this process, where Triton has chosen it; None
    where the slots of the processes decide. ``front_ends`` processes share that engine, of
    ``instances`` processes of the model.
    """

    devices: tuple[str, ...] = ("",)
    engine: int | None = 0
    front_ends: int = 1
    instances: int = 1

    @property
    def engines(self) -> int:
        """How many engines the model has."""
        return len(self.devices)

    @classmethod
    def from_triton(
        cls, config: Mapping[str, Any], args: Mapping[str, str], where: Path, visible: str | None
    ) -> Placement:
        """Read config.pbtxt, ``where``, as JSON, and Triton's ``args`` to this instance.

        ``visible`` is the server's own CUDA_VISIBLE_DEVICES, within which GPUs are counted. Raises
        SettingsError.
        """
        groups = config.get("instance_group", [])
        given = config.get("parameters", {}).get(DEVICES_PARAMETER, {}).get("string_value", "")
        on_gpus = [group for group in groups if group.get("kind") == "KIND_GPU"]
        if on_gpus and len(on_gpus) != len(groups):
            raise SettingsError(f"{where}: instance_group mixes KIND_GPU with another kind")
        if on_gpus and given:
            raise SettingsError(
                f"{where}: parameter {DEVICES_PARAMETER} needs instances of KIND_MODEL, and "
                "instance_group has KIND_GPU, which chooses a GPU by itself"
            )
        if on_gpus:  # an engine for each GPU on which Triton has placed instances
            placed = _instances(on_gpus, where)
            gpus = sorted(placed)
            own = int(args.get("model_instance_device_id", gpus[0]))
            devices = tuple(as_visible(str(gpu), visible, where) for gpu in gpus)
            return cls(devices, gpus.index(own), placed[own], placed.total())
        count = max(1, sum(group.get("count", 1) for group in groups))
        if not given:
            return cls(front_ends=count, instances=count)
        sets = parse_sets(given, f"{where}: parameter {DEVICES_PARAMETER}")
        if count % len(sets):
            raise SettingsError(
                f"{where}: instance_group has {count} instances, and {DEVICES_PARAMETER} "
                f"{len(sets)} sets: {len(sets)} instances are needed, or a multiple of it for "
                "several front ends each"
            )
        devices = tuple(",".join(as_visible(gpu, visible, where) for gpu in ids) for ids in sets)
        return cls(devices, 0 if len(sets) == 1 else None, count // len(sets), count)


def _instances(groups: list[Mapping[str, Any]], where: Path) -> Counter[int]:
    """Return how many instances Triton has placed on each GPU."""
    placed: Counter[int] = Counter()
    for group in groups:
        for gpu in group.get("gpus", []):
            placed[int(gpu)] += group.get("count", 1)
    if not placed:
        raise SettingsError(
            f"{where}: instance_group has kind: KIND_GPU, and the server has no GPU for it"
        )
    return placed


def parse_sets(text: str, where: str) -> list[list[str]]:
    """Return the sets of GPUs of a string such as ``"0,1;2,3"``: numbers, or UUIDs throughout.

    Raises SettingsError for anything else, and for a GPU that occurs twice.
    """
    sets = [[gpu.strip() for gpu in part.split(",")] for part in text.strip().split(";")]
    ids = [gpu for part in sets for gpu in part]
    numbers = all(gpu.isascii() and gpu.isdigit() for gpu in ids)
    if not numbers and not all(_UUID.fullmatch(gpu) for gpu in ids):
        raise SettingsError(
            f'{where} must be sets of GPUs such as "0,1;2,3", by numbers or all by UUIDs '
            f'(GPU-… or MIG-…), got "{text}"'
        )
    counted = Counter(str(int(gpu)) if numbers else gpu.lower() for gpu in ids)
    if twice := next((gpu for gpu, times in counted.items() if times > 1), None):
        raise SettingsError(
            f'{where} has GPU {twice} twice, and the sets must not overlap: "{text}"'
        )
    # CUDA shows a process only the first of several MIG devices.
    if any(len(part) > 1 and gpu.startswith("MIG-") for part in sets for gpu in part):
        raise SettingsError(
            f'{where} must have one MIG device in a set, as CUDA uses no more, got "{text}"'
        )
    return [[str(int(gpu)) if numbers else gpu for gpu in part] for part in sets]


def as_visible(gpu: str, visible: str | None, where: Path) -> str:
    """Return the name for CUDA_VISIBLE_DEVICES of the GPU that the server numbers ``gpu``.

    Triton numbers the GPUs within its own CUDA_VISIBLE_DEVICES, ``visible``.
    """
    if not visible or not gpu.isdigit():
        return gpu
    seen = [name.strip() for name in visible.split(",")]
    if int(gpu) >= len(seen):
        raise SettingsError(
            f"{where}: GPU {gpu} does not exist: the server's CUDA_VISIBLE_DEVICES has {len(seen)}"
            f', counted from 0: "{visible}"'
        )
    return seen[int(gpu)]

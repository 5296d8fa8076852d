"""How the instances of a model find their engines: each with its GPUs, slots and port."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import triton_vllm
from triton_vllm.config.openai import OpenAISettings
from triton_vllm.config.placement import Placement
from triton_vllm.config.settings import ModelSettings, ServingSettings
from triton_vllm.errors import SettingsError
from triton_vllm.topology.instances import Instance, settings_of
from triton_vllm.topology.load_balancing import LoadBalancer, NoLoadBalancer

TWO = Placement(("0,1", "2,3"), None, 2, 4)

# One instance in a process of its own, as under Triton: says what it found, and leaves when told.
INSTANCE = """
import contextlib, json, os, sys
from pathlib import Path
from triton_vllm.topology.instances import Instance
from triton_vllm.config.placement import Placement
from triton_vllm.config.settings import ModelSettings

placement = Placement(("0,1", "2,3"), None, 2, 4)
settings = ModelSettings("vllm", "1", Path("/m"), {"model": "m"}, placement=placement)
with contextlib.ExitStack() as cleanup:
    instance = Instance.claim(settings, cleanup)
    found = [instance.label, os.environ["CUDA_VISIBLE_DEVICES"], instance.devices]
    found += [instance.slot.index, os.environ["PROMETHEUS_MULTIPROC_DIR"]]
    print(json.dumps(found), flush=True)
    sys.stdin.read()
"""


def settings(openai: OpenAISettings | None, placement: Placement = TWO) -> ModelSettings:
    serving = ServingSettings(openai=openai)
    return ModelSettings("vllm", "1", Path("/m"), {"model": "m"}, {}, serving, placement)


def test_instances_are_dealt_to_the_engines(tmp_path: Path) -> None:
    """Four processes make two engines of two front ends, on sets that are disjoint."""
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(Path(triton_vllm.__file__).parents[1]),
    }
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", INSTANCE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for _ in range(TWO.instances)
        ]
        found = []
        for process in processes:
            assert process.stdout
            found.append(json.loads(process.stdout.readline()))
    assert {("0", "0,1"): 2, ("1", "2,3"): 2} == Counter((f[0], f[1]) for f in found)
    assert all(visible == devices for _, visible, devices, _, _ in found)
    assert {("0", 0), ("0", 1), ("1", 0), ("1", 1)} == {
        (label, slot) for label, _, _, slot, _ in found
    }
    assert 2 == len({(label, directory) for label, *_, directory in found})


@pytest.mark.parametrize(
    ("placement", "kind"),
    [(Placement(), NoLoadBalancer), (Placement(("0", "1"), 1, 1, 2), LoadBalancer)],
    ids=["one engine", "KIND_GPU"],
)
def test_only_several_engines_share(
    placement: Placement, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several is in the table, as long as it lives; no slot and no table is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "of the server")
    with contextlib.ExitStack() as cleanup:
        instance = Instance.claim(settings(None, placement), cleanup)
        assert kind is type(instance.balancer)
        assert (kind is LoadBalancer) == bool(list(tmp_path.rglob("loads")))
    assert [] == list(tmp_path.rglob("*-of-*"))


@pytest.mark.parametrize(("engine", "port"), [(0, 9000), (1, 9001)])
def test_each_engine_has_an_openai_port(engine: int, port: int) -> None:
    """The port of the settings is the first engine's; the others' follow."""
    openai = settings_of(settings(OpenAISettings(port=9000)), engine).serving.openai
    assert openai
    assert port == openai.port


def test_without_an_openai_port() -> None:
    """Nothing is changed."""
    given = settings(None)
    assert given == settings_of(given, 1)


def test_an_openai_port_that_is_none() -> None:
    """Ports end at 65535."""
    with pytest.raises(
        SettingsError, match=r'openai.port" 65535: the 2 engines need ports up to 65536'
    ):
        settings_of(settings(OpenAISettings(port=65535)), 1)

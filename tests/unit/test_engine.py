"""What of the engine can be tested without vLLM."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import triton_vllm
from triton_vllm.engine.engine import Engine
from triton_vllm.errors import UnavailableError
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.server_watch import NoWatch
from triton_vllm.topology.load_balancing import NoLoadBalancer

PACKAGE = Path(triton_vllm.__file__).parents[1]

IMPORT_VLLM = """
from triton_vllm.vllm_api.versions import unusable_vllm
try:
    from triton_vllm.vllm_api import api as vllm_api
except ImportError as error:
    print(unusable_vllm(error))
"""


def test_an_empty_folder_named_vllm_is_said_in_a_line(tmp_path: Path) -> None:
    """The model repository's own folder vllm, imported in the package's place, is recognised."""
    (tmp_path / "vllm").mkdir()
    path = os.pathsep.join([str(PACKAGE), str(tmp_path)])
    said = subprocess.run(
        [sys.executable, "-c", IMPORT_VLLM],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"import vllm found ['{tmp_path}/vllm'], which is not vLLM; needed is vLLM 0.26" in said


class Parts:
    """The parts of an engine that end, and the order in which they did."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.loop = EventLoopThread("engine")
        self.admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
        self.held = contextlib.ExitStack()
        self.held.callback(self.ended.append, "the slot")
        parts: Any = self
        self.engine = Engine(
            plan=cast(Any, SimpleNamespace(settings=SimpleNamespace(name="vllm"))),
            loop=self.loop,
            admission=self.admission,
            supervisor=cast(Any, SimpleNamespace(close=self.close, shut_down=self.shut_down)),
            openai=cast(Any, SimpleNamespace(shut_down=self.close_port)),
            parser=parts,
            answers=parts,
            lag=parts,
            watch=NoWatch(),
            held=self.held,
        )

    def close(self) -> None:
        self.ended.append("restarts")

    async def close_port(self) -> None:
        self.ended.append("the port")

    async def shut_down(self) -> None:
        self.ended.append("the processes")


ENDS = ["restarts", "the port", "the processes"]


def test_an_unload_ends_all_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """The slot is released last."""
    parts = Parts()
    parts.engine.shutdown()
    assert [*ENDS, "the slot"] == parts.ended
    assert [] == caplog.messages


def test_the_engine_does_not_wait_for_triton(caplog: pytest.LogCaptureFixture) -> None:
    """When the drain is over it ends, new requests are refused, and the unload finds it ended."""
    parts = Parts()
    for _ in range(2):
        parts.loop.call(parts.engine.end_without_triton())
    assert ENDS == parts.ended
    assert not parts.engine.is_up
    with pytest.raises(UnavailableError, match="is being unloaded"):
        parts.admission.check()
    parts.engine.shutdown()
    assert [*ENDS, "the slot"] == parts.ended
    (line,) = caplog.messages
    assert line.startswith("vllm: Triton still holds the model after the drain")

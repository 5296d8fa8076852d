"""What of the engine can be tested without vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import triton_vllm

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

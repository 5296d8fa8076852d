"""Triton with our model installed as its backend "vllm", and a folder made for the original."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.model_folder import EXECUTION_ENV, ROOT, TRITON

# As in the samples of Triton's own vLLM backend: no tensors, no policy.
CONFIG = """
backend: "vllm"
instance_group [ { count: 1 kind: KIND_MODEL } ]
"""

ENSEMBLE = """
platform: "ensemble"
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] }
]
output [
  { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "tokens" data_type: TYPE_UINT32 dims: [ -1 ] }
]
ensemble_scheduling { step [ {
  model_name: "theirs"
  model_version: -1
  input_map [
    { key: "text_input" value: "text_input" },
    { key: "return_num_output_tokens" value: "return_num_output_tokens" }
  ]
  output_map [
    { key: "text_output" value: "text_output" },
    { key: "num_output_tokens" value: "tokens" }
  ]
} ] }
"""


def install_backend(directory: Path) -> Path:
    """Copy Triton's backends below ``directory``, install ours among them, return their folder."""
    # At the same depth as in the original, since its programs find their libraries by that.
    tritonserver = directory / "pytriton/tritonserver"
    backends = tritonserver / "backends"
    shutil.copytree(TRITON / "backends", backends, ignore=shutil.ignore_patterns("__pycache__"))
    libraries = TRITON.parents[1] / "nvidia_pytriton.libs"
    if libraries.is_dir():
        (directory / libraries.name).symlink_to(libraries)
    script = [str(ROOT / "scripts/install_backend.sh"), "--env", str(EXECUTION_ENV), str(backends)]
    subprocess.run(script, check=True, timeout=60)
    return backends


def add_their_model(repository: Path, name: str, engine_args: Mapping[str, Any]) -> None:
    """Write a model folder for Triton's own vLLM backend, as its users have them."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.json").write_text(json.dumps(engine_args))


def add_ensemble(repository: Path, name: str) -> None:
    """Write an ensemble around the model ``theirs``."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(ENSEMBLE)

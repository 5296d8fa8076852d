"""An engine core that is forked from what has imported vLLM already, by the vLLM at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm

from tests.tiny_llama import make_tiny_llama

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))


# Another vLLM over the packages of the environment: its kernels want a torch of their own.
OWN = Path(vllm.__file__).is_relative_to(sys.prefix)
# Nightly with the environment's, which the end-to-end tests fork in each run.
pytestmark = [pytest.mark.timeout(400), *([pytest.mark.slow] if OWN else [])]


def test_an_engine_core_is_forked(tmp_path: Path) -> None:
    """Its environment is the one that vLLM has made for it, or it would be spawned; it generates.

    Where no engine can run, any other process is started as vLLM starts an engine core.
    """
    model = make_tiny_llama(tmp_path / "tiny", CACHE / "models/SmolLM2-135M-Instruct")
    arguments: dict[str, object] = {
        "runs": OWN,
        "model": str(model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 1 << 26,
    }
    path = [str(ROOT / "model_repository/vllm/1"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked_core.py")), json.dumps(arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(reversed(path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["forked"], done.stdout
    assert (8 if OWN else 0) == len(said.get("tokens", []))

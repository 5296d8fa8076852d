"""An engine core that is forked from what has imported vLLM already, by the vLLM at hand."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm

from tests.tiny_llama import make_tiny_llama
from triton_vllm.vllm_api import forked

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))


# Another vLLM over the packages of the environment: its kernels want a torch of their own.
OWN = Path(vllm.__file__).is_relative_to(sys.prefix)
# Nightly with the environment's, which the end-to-end tests fork in each run.
pytestmark = [pytest.mark.timeout(400), *([pytest.mark.slow] if OWN else [])]


def test_an_engine_is_forked(tmp_path: Path) -> None:
    """The inspection of its model's class, its core and its worker; and it generates.

    The environment of each is the one that vLLM has made for it, or it would be spawned. Where no
    engine can run, any other process is started as vLLM starts an engine core, and a worker. What
    it has imported stays out of sight of its garbage collector.
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
    # Two threads of OpenMP's, each bound to one CPU, as OpenMP would bind them.
    cpus = sorted(os.sched_getaffinity(0))[:2]
    bind = {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cpus))}
    path = [str(ROOT / "model_repository/vllm/1"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("forked_core.py")), json.dumps(arguments)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(reversed(path)), "VLLM_CACHE_ROOT": str(tmp_path)}
        | bind,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [True, True] == said["forked"], done.stdout
    assert OWN or said["frozen"] > 100_000  # vLLM and what it imports have 670,000
    assert 0 == said["inspected by vLLM"]
    assert any(tmp_path.glob("modelinfos/*llama*"))
    assert (8 if OWN else 0) == len(said.get("tokens", []))
    assert ([[cpu] for cpu in cpus] if OWN else []) == said.get("cpus", [])


def test_vllm_inspects_where_no_fork_does() -> None:
    """What it would have found out in its own way is what it gets, in a fork or without."""
    in_fork = functools.partial(forked._run_in_fork, multiprocessing.get_context("fork"))
    assert "fork" == in_fork(lambda: "fork", lambda function: "vLLM")
    assert "vLLM" == in_fork(lambda: os._exit(1), lambda function: "vLLM")

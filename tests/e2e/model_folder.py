"""The model under test, in a repository of its own, and what must be there for it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))
TRITON = Path(os.environ.get("TRITON_SERVER_DIR", CACHE / "triton/pytriton/tritonserver"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
EXECUTION_ENV = Path(
    os.environ.get("TRITON_VLLM_ENV", CACHE / "model_repository/vllm/vllm_env")
).absolute()
ENGINE_ARGS: dict[str, Any] = {
    "model": str(CHECKPOINT),
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 512,
    "kv_cache_memory_bytes": 268435456,
    "max_num_seqs": 16,
    "enable_log_requests": True,
}


def add_model(repository: Path, name: str = "vllm", *, engine_args: str | None = None) -> Path:
    """Copy the model, with the execution environment in place and a small engine; return it.

    ``engine_args`` is the content of vllm_engine_args.json, default the arguments of these tests.
    """
    model = repository / name
    ignored = shutil.ignore_patterns("__pycache__", "vllm_env*", "triton_python_backend_stub")
    shutil.copytree(ROOT / "model_repository/vllm", model, ignore=ignored)
    config = model / "config.pbtxt"
    text = config.read_text()
    packed = "$$TRITON_MODEL_DIRECTORY/vllm_env.tar.gz"
    assert packed in text, "config.pbtxt names the environment in a way that these tests don't know"
    config.write_text(text.replace(packed, str(EXECUTION_ENV)))
    content = json.dumps(ENGINE_ARGS) if engine_args is None else engine_args
    (model / "vllm_engine_args.json").write_text(content)
    return model


def use_front_ends(model: Path, count: int) -> None:
    """Let several front ends serve a model."""
    config = model / "config.pbtxt"
    text = config.read_text()
    assert "count: 1" in text
    config.write_text(text.replace("count: 1", f"count: {count}"))


def use_gpus(model: Path, devices: str) -> None:
    """Place the instances of a model on sets of GPUs: "0,1;2,3"."""
    with (model / "config.pbtxt").open("a") as config:
        config.write(
            f'parameters {{ key: "gpu_device_ids" value {{ string_value: "{devices}" }} }}\n'
        )


def check_prerequisites() -> None:
    """Raise with a line for each thing that scripts/test.sh would have put in place."""
    missing = [
        str(path)
        for path in (TRITON / "bin/tritonserver", EXECUTION_ENV / "bin/activate", CHECKPOINT)
        if not path.exists()
    ]
    if missing:
        raise RuntimeError(f"run scripts/test.sh: missing {', '.join(missing)}")
    assert sys.platform == "linux", "Triton runs on Linux"

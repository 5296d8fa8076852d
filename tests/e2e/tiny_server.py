"""A server with the tiny model, and what it holds: for tests and scripts of faults and load."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.grpc_requests import generate
from tests.e2e.model_folder import CHECKPOINT, ENGINE_ARGS, add_model, check_prerequisites
from tests.e2e.triton_server import HAS_GPU, TritonServer
from tests.tiny_llama import make_tiny_llama

CONTEXT = 16384
GPU_NOISE_MB = 100


def add_tiny_model(directory: Path, serving: Mapping[str, Any], **engine_args: Any) -> Path:
    """Write the model and a repository with the model `vllm` of it; return the repository."""
    check_prerequisites()
    model = make_tiny_llama(directory / "tiny", CHECKPOINT, CONTEXT)
    arguments = {"model": str(model), "dtype": "float32", "max_model_len": CONTEXT}
    content = ENGINE_ARGS | arguments | engine_args | {"serving": dict(serving)}
    add_model(directory / "repository", engine_args=json.dumps(content))
    return directory / "repository"


def metric(server: TritonServer, name: str, label: str = "") -> float:
    """Return the value of one of the model's metrics."""
    for line in server.metrics().splitlines():
        if line.startswith(f"{name}{{") and label in line:
            return float(line.rpartition(" ")[2])
    return 0.0


def await_metric(
    server: TritonServer, name: str, good: Callable[[float], bool], seconds: float = 30
) -> None:
    """Wait until a metric has a good value."""
    deadline = time.monotonic() + seconds
    while not good(metric(server, name)):
        assert time.monotonic() < deadline, f"{name} is {metric(server, name)}"
        time.sleep(0.02)


def await_idle(server: TritonServer) -> None:
    """Wait until nothing runs.

    vLLM writes the gauge with each step of the engine: after an abort one more step is needed.
    """
    deadline = time.monotonic() + 60
    while metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "requests are still running"
        generate(server, "Hello", max_tokens=1)
        time.sleep(0.2)


def gpu_memory_mb() -> int:
    """Return what is in use on all GPUs of the machine, in MiB; 0 where nothing says so."""
    if not HAS_GPU:
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    said = subprocess.run(query, check=False, capture_output=True, text=True, timeout=60)
    return sum(int(word) for word in said.stdout.split() if word.isdecimal())


def await_gpu_memory(mb: int, seconds: float = 5) -> None:
    """Wait until no more than ``mb`` is in use on the GPUs, and a little."""
    deadline = time.monotonic() + seconds
    while (used := gpu_memory_mb()) > mb + GPU_NOISE_MB:
        assert time.monotonic() < deadline, f"{used} MB of GPU memory in use, {mb} before"
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What all processes of a server hold together; ``gpu_mb`` is that of the whole machine."""

    processes: int
    memory_mb: int
    descriptors: int
    shared_memory_files: int
    gpu_mb: int

    @classmethod
    def of(cls, server: TritonServer) -> Holdings:
        """Count now."""
        memory = descriptors = count = 0
        files: set[str] = set()
        for process in server.processes():
            try:
                memory += process.memory_full_info().uss
                descriptors += process.num_fds()
                files |= {m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/")}
                count += 1
            except psutil.Error:
                continue  # it has just ended
        return cls(count, memory >> 20, descriptors, len(files), gpu_memory_mb())

    def most(self, other: Holdings) -> Holdings:
        """Return the larger one of each."""
        return Holdings(*map(max, astuple(self), astuple(other)))

    def grown_to(self, later: Holdings, memory_mb: int) -> list[str]:
        """Say what has grown: memory by more than ``memory_mb``, others by more than a handful."""
        limits = {"processes": 0, "memory_mb": memory_mb, "descriptors": 20}
        limits |= {"shared_memory_files": 2, "gpu_mb": GPU_NOISE_MB}
        return [
            f"{name} grew from {getattr(self, name)} to {getattr(later, name)}"
            for name, limit in limits.items()
            if getattr(later, name) > getattr(self, name) + limit
        ]

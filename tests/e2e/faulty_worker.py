"""vLLM's worker for CPUs with the faults of a GPU, for the engine argument ``worker_cls``.

A file of the fault's name in the folder FAULTS, which the fault removes, makes it happen: real
errors in a real engine core, raised where a GPU's would be.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


def _happens(fault: str) -> bool:
    path = Path(os.environ["FAULTS"], fault)
    happens = path.exists()
    path.unlink(missing_ok=True)
    return happens


class FaultyWorker(CPUWorker):  # type: ignore[misc]
    """Fails when it is told to."""

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Fail as a GPU that another process fills, or take for ever."""
        if Path(os.environ["FAULTS"], "full").exists():  # and stays full
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        if _happens("slow"):
            time.sleep(1000)
        return super().load_model(*args, **kwargs)

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Fail in a step."""
        if _happens("memory"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if _happens("cuda"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().execute_model(*args, **kwargs)

    def shutdown(self) -> None:
        """Hang in what a broken GPU never finishes."""
        if _happens("hang"):
            time.sleep(1000)
        super().shutdown()

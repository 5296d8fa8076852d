"""vLLM's worker with the faults of a GPU, for the engine argument ``worker_cls``.

A file of the fault's name in the folder FAULTS, which the fault removes, makes it happen. With a
GPU the faults of a step are the GPU's own; without one they are errors in a real engine core all
the same, raised where a GPU's would be.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

if torch.cuda.is_available():
    from vllm.v1.worker.gpu_worker import Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker


def _happens(fault: str) -> bool:
    path = Path(os.environ["FAULTS"], fault)
    happens = path.exists()
    path.unlink(missing_ok=True)
    return happens


def _run_out_of_memory() -> NoReturn:
    filled = []
    while torch.cuda.is_available():
        filled.append(torch.empty(2 << 30, dtype=torch.uint8, device="cuda"))
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _break_cuda() -> NoReturn:
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")[torch.tensor([1 << 30], device="cuda")]
        torch.cuda.synchronize()  # which finds that the kernel above has failed
    raise RuntimeError("CUDA error: device-side assert triggered")


class FaultyWorker(Worker):  # type: ignore[misc]
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
            _run_out_of_memory()
        if _happens("cuda"):
            _break_cuda()
        return super().execute_model(*args, **kwargs)

    def shutdown(self) -> None:
        """Hang in what a broken GPU never finishes."""
        if _happens("hang"):
            time.sleep(1000)
        super().shutdown()

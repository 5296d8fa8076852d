"""What an engine core imports, for the fork server: importing this file imports it.

Raises ImportError where an engine core cannot be forked from a process that has imported it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from importlib import import_module
from types import SimpleNamespace

import torch
from vllm.platforms import current_platform
from vllm.utils.system_utils import set_process_title
from vllm.v1.executor import multiproc_executor

from triton_vllm.topology.fork_server_process import Start
from triton_vllm.topology.forked_process import OPENMP_CPUS, Forks

_UNFREEZE_AT_THE_END = (
    "vllm.distributed.parallel_state",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",  # the worker of a CPU inherits its end
)
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED of cuda.h


def _import_core() -> None:
    """Import the engine core, and the worker, which vLLM names in a resolved configuration only."""
    import_module("vllm.v1.engine.core")
    if current_platform.is_cuda_alike():
        import_module("vllm.v1.worker.gpu_worker")
    elif current_platform.is_cpu():
        import_module("vllm.v1.worker.cpu_worker")


def _check_cuda() -> None:
    """Raise ImportError if an import has initialised CUDA, which no fork survives."""
    if torch.cuda.is_initialized() or _driver_is_initialised():
        raise ImportError("the import of vLLM has initialised CUDA")


def _driver_is_initialised() -> bool:
    """Return whether CUDA's driver is in use here, which it says itself without being initialised.

    Open devices do not tell: the import asks NVML about the GPUs, which opens the same ones.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:  # not even loaded
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != _NOT_INITIALIZED)


def after_fork(start: Start) -> None:
    """Use as many threads as torch would that is imported now, and fork vLLM's workers, too."""
    if OPENMP_CPUS in os.environ.keys() - start.environment.keys():
        _bind_openmp([int(cpu) for cpu in os.environ[OPENMP_CPUS].split()])
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        torch.set_num_threads(int(threads))
    elif start.moves:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if choose := getattr(multiproc_executor, "get_mp_context", None):
        forks = Forks("engine core", start.channel, start.environment)
        multiproc_executor.get_mp_context = lambda: forks.context(choose())


def _leave_frozen_at_the_end() -> None:
    """Have vLLM unfreeze nothing before a fork ends: it then collects garbage.

    To walk what was imported takes half a second, and copies the pages that the fork shares with
    the fork server. Where vLLM unfreezes as it captures CUDA graphs, it does so in another module.
    """
    end = SimpleNamespace(**{**vars(gc), "unfreeze": lambda: None})
    for name in _UNFREEZE_AT_THE_END:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "gc", None) is gc:
            module.gc = end  # type: ignore[attr-defined]


def _bind_openmp(cpus: list[int]) -> None:
    """Bind each thread of GNU's OpenMP, which this starts, to one CPU; the first is this thread."""
    library = ctypes.CDLL(None)  # vLLM has it preloaded

    def bind(_: int | None) -> None:
        os.sched_setaffinity(0, {cpus[library.omp_get_thread_num()]})

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(bind)
    library.GOMP_parallel(function, None, len(cpus), 0)


_import_core()
_check_cuda()
_leave_frozen_at_the_end()
# Only now, as it imports a part of the worker.
import_module("triton_vllm.vllm_api.engine_process.allowed_tokens").keep_apart()
# Now, as it finds the place of the title by the environment, which a fork's child replaces.
set_process_title("ForkServer")

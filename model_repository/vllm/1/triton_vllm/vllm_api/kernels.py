"""vLLM's kernels for the CPU, which are libraries that need others of the system.

vLLM only warns if it cannot load them, and the engine dies later, of the first operator that torch
lacks. Imports no vLLM by itself.
"""

from __future__ import annotations

import multiprocessing.spawn
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

_DIED_OF = "'_OpNamespace'"  # torch has no such operator
# In a process of its own, as a library that can be loaded after all may want another CPU.
_LOAD = """
import contextlib, ctypes, sys
with contextlib.suppress(ImportError):
    import torch
try:
    ctypes.CDLL(sys.argv[1])
except OSError as error:
    print(error)
"""
_LOAD_SECONDS = 60
_HINTS = {"libnuma": "install libnuma1 (Debian, Ubuntu) or numactl-libs (Fedora)"}


def explained(cause: str) -> str:
    """Return why an engine lacked vLLM's operators, if it died of that; else ``cause`` itself."""
    if _DIED_OF not in cause:
        return cause
    spec = find_spec("vllm")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")
    why = _why_unloadable(folder)
    return f"vLLM's kernels cannot be loaded: {why}" if why else cause


def _why_unloadable(folder: Path) -> str:
    """Return what the loader says of the kernels in a folder, and what to do; empty if nothing."""
    kernels = sorted(folder.glob("_C*.so"))  # one for each kind of CPU: all need the same libraries
    if not kernels:
        return ""
    python = os.fsdecode(multiprocessing.spawn.get_executable())
    try:
        tried = subprocess.run(
            [python, "-c", _LOAD, str(kernels[0])],
            capture_output=True,
            text=True,
            timeout=_LOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = tried.stdout.strip()
    hints = [hint for library, hint in _HINTS.items() if library in said]
    return ": ".join([said, *hints])

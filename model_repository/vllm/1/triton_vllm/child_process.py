"""Runs first in each process that the stub starts: ask Linux to end it when the stub dies.

A stub that is killed cannot stop its engine, which would hold the GPU for ever. multiprocessing
runs this file by its path as the main module of a spawned process: keep it to the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal

STUB_PID = "TRITON_VLLM_STUB_PID"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_stub() -> None:
    """Set this process's parent-death signal to SIGKILL if the stub is its parent."""
    stub = int(os.environ.get(STUB_PID, "0"))
    if stub and os.getppid() == stub:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != stub:  # it died meanwhile
            os._exit(1)


if __name__ == "__mp_main__":
    die_with_stub()

"""Runs first in each process that the stub starts.

It asks Linux to end the process when the stub dies: a stub that is killed cannot stop its engine,
which would hold the GPU for ever. And it writes down the first error that the process logs, since
of an engine that does not start vLLM tells the stub no more than that.

multiprocessing runs this file by its path as the main module of a spawned process: keep it to the
standard library.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
from typing import Any

STUB_PID = "TRITON_VLLM_STUB_PID"
FIRST_ERROR = "TRITON_VLLM_FIRST_ERROR"  # the path of the file that takes it
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_stub() -> None:
    """Set this process's parent-death signal to SIGKILL if the stub is its parent."""
    stub = int(os.environ.get(STUB_PID, "0"))
    if stub and os.getppid() == stub:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != stub:  # it died meanwhile
            os._exit(1)


def write_down_first_error() -> None:
    """Write the first exception that is logged as an error into the file, if nobody has yet."""
    make = logging.getLogRecordFactory()

    def make_and_look(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            try:
                with open(os.environ[FIRST_ERROR], "x", encoding="utf-8") as file:  # noqa: PTH123
                    file.write(f"{type(error).__name__}: {error}")
            except (OSError, KeyError):
                pass  # somebody has, or nobody wants to know
        return record

    logging.setLogRecordFactory(make_and_look)


if __name__ == "__mp_main__":
    die_with_stub()
    write_down_first_error()

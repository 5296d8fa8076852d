"""Prepares Triton's stub process, before anything heavy is imported or started, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import locale
import math
import os
import signal
import sys
import time
from pathlib import Path

from triton_vllm.errors import one_line
from triton_vllm.topology import child_process

_STANDARD_ERROR = 2
_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def prepare_process() -> None:
    """Set the stub's locale, and prepare for the engine's processes."""
    # The embedded interpreter starts in the C locale, where open() decodes ASCII only and the
    # import of torch fails on its own sources.
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    # As in `vllm serve`. A forked engine core, a copy of the stub, was a fifth slower than one run
    # by the environment's bin/python (docs/decisions), and with small models the engine core's
    # thread is the bottleneck.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # multiprocessing runs the main module's file in each child that it spawns. The embedded
    # interpreter has no such file, so this one can be set.
    os.environ[child_process.STUB_PID] = str(os.getpid())
    os.environ[child_process.SERVER_PID] = str(os.getppid())
    sys.modules["__main__"].__file__ = child_process.__file__
    os.register_at_fork(after_in_child=child_process.die_with_stub)
    # `kill -USR1` writes the stack of each thread of the stub to the server's standard error.
    faulthandler.register(signal.SIGUSR1, file=_STANDARD_ERROR)


def leave_no_core_dump() -> None:
    """Let the stub, whose model is finalized, end without a core dump.

    From Triton 26.04 on each Python stub aborts after its model was finalized.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)


class EngineErrors:
    """The errors that the engine's processes have logged, which explain how they ended.

    The processes write them into ``directory``, which they find in the environment.
    """

    def __init__(self, directory: Path) -> None:
        """Let all processes that this one starts from now on write there."""
        self._path = directory / "errors.jsonl"
        os.environ[child_process.ERRORS] = str(self._path)

    def clear(self) -> None:
        """Drop the errors of an earlier engine."""
        with contextlib.suppress(OSError):  # an engine starts without it too
            self._path.write_text("", encoding="utf-8")

    def first(self, seconds: float = math.inf) -> str:
        """Return the first error of the last ``seconds`` as one line, empty if there is none.

        The first error is the cause, for example in a worker; later ones follow from it.
        """
        oldest = time.time() - seconds
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # it may be incomplete
                when, text = json.loads(line)
                if when >= oldest:
                    return one_line(text)
        return ""

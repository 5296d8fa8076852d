"""What must be set in Triton's stub process before anything heavy is imported or started."""

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
    """Mend the stub's locale, and prepare for the engine's processes."""
    # The embedded interpreter starts in the C locale, where open() decodes ASCII only and the
    # import of torch fails on its own sources.
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    # As `vllm serve` does. A forked engine core, a copy of the stub, was a fifth slower than one
    # that the environment's own bin/python runs (docs/architecture.md), and the engine core's one
    # thread is what bounds small models.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    # multiprocessing runs the main module's file in each child that it spawns; the embedded
    # interpreter has no such file, so there is room for ours.
    os.environ[child_process.STUB_PID] = str(os.getpid())
    os.environ[child_process.SERVER_PID] = str(os.getppid())
    sys.modules["__main__"].__file__ = child_process.__file__
    os.register_at_fork(after_in_child=child_process.die_with_stub)
    # `kill -USR1` shows, on the server's standard error, where each thread of the stub stands.
    faulthandler.register(signal.SIGUSR1, file=_STANDARD_ERROR)


def leave_no_core_dump() -> None:
    """Let the stub, whose model is finalized, end without a core dump.

    From Triton 26.04 on each Python stub aborts after its model was finalized.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)


class EngineErrors:
    """What the engine's processes have logged as errors, so what ended them.

    ``directory`` is where they write it down, which they are told by the environment.
    """

    def __init__(self, directory: Path) -> None:
        """All processes that this one starts from now on write there."""
        self._path = directory / "errors.jsonl"
        os.environ[child_process.ERRORS] = str(self._path)

    def clear(self) -> None:
        """Begin anew: another engine is started."""
        with contextlib.suppress(OSError):  # no engine fails for want of an explanation
            self._path.write_text("", encoding="utf-8")

    def first(self, seconds: float = math.inf) -> str:
        """Return the first error of the last ``seconds`` as one line, empty if there is none.

        The first one is the cause, in a worker, say; what others log is what follows from it.
        """
        oldest = time.time() - seconds
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # it may be half written
                when, text = json.loads(line)
                if when >= oldest:
                    return one_line(text)
        return ""

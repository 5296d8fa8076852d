"""What must be set in Triton's stub process before anything heavy is imported or started."""

from __future__ import annotations

import faulthandler
import locale
import os
import signal
import sys
import tempfile
from pathlib import Path

from triton_vllm import child_process

_STANDARD_ERROR = 2


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
    sys.modules["__main__"].__file__ = child_process.__file__
    os.register_at_fork(after_in_child=child_process.die_with_stub)
    # `kill -USR1` shows, on the server's standard error, where each thread of the stub stands.
    faulthandler.register(signal.SIGUSR1, file=_STANDARD_ERROR)


class FirstError:
    """The first error that a child process logs while the context lasts, which is a start-up's."""

    def __enter__(self) -> FirstError:
        self._directory = tempfile.TemporaryDirectory(
            prefix="triton_vllm-", ignore_cleanup_errors=True
        )
        os.environ[child_process.FIRST_ERROR] = str(Path(self._directory.name) / "error")
        return self

    def __exit__(self, *error: object) -> None:
        del os.environ[child_process.FIRST_ERROR]
        self._directory.cleanup()

    def instead_of(self, error: Exception) -> str:
        """Return it in one line; if there is none, the error that the parent process got."""
        try:
            text = Path(os.environ[child_process.FIRST_ERROR]).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = f"{type(error).__name__}: {error}"
        return " ".join(text.split())[:2000]

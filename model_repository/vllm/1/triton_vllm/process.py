"""What must be set in Triton's stub process before anything heavy is imported or forked."""

from __future__ import annotations

import ctypes
import locale
import os
import signal

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def prepare_process() -> None:
    """Mend the stub's locale, and let the processes it forks die with it."""
    # The embedded interpreter starts in the C locale, where open() decodes ASCII only and the
    # import of torch fails on its own sources.
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    stub = os.getpid()
    os.register_at_fork(after_in_child=lambda: _die_with_parent(stub))


def _die_with_parent(stub: int) -> None:
    """Ask Linux to kill this process when its parent dies, if the parent is the stub.

    A stub that is killed cannot stop its engine, which would hold the GPU for ever.
    """
    if os.getppid() == stub:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    elif os.getppid() == 1:  # the stub died between fork and here
        os._exit(1)

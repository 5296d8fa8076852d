"""What the sandbox runs in place of xgrammar, and what asks it; tests/contract has both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from triton_vllm.limits.sandbox import TOO_MUCH_MEMORY, JobError


def compile_as_told(tokenizer: str) -> Callable[[tuple[str, str]], None]:
    """A compiler that sleeps, works, or dies, as it is told; for ``grammar_compiler.prepare``."""
    return do_as_told


def do_as_told(job: tuple[str, str]) -> None:
    _, text = job
    if text.startswith("first "):  # first PATH WHAT: what to do the first time
        _, path, text = text.split(" ", 2)
        if Path(path).exists():
            text = "sleep 0"
        with Path(path).open("a") as file:
            file.write("tried ")
    what, _, number = text.partition(" ")
    if what == "die":
        os._exit(int(number))
    if what == "grow":
        raise JobError(TOO_MUCH_MEMORY)
    if what == "sleep":
        time.sleep(float(number))
    until = time.process_time() + (float(number) if what == "work" else 0)
    while time.process_time() < until:
        pass


def die_at_once(tokenizer: str) -> None:
    """A compiler that does not start."""
    os._exit(0)


def regex(text: str) -> Any:
    return SimpleNamespace(json=None, regex=text, grammar=None, structural_tag=None, choice=None)


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Let the clients of ``tasks`` leave."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""What stands in the compiler's process for xgrammar, and what asks it; tests/contract has both."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from triton_vllm.limits import grammar_compiler


def compile_as_told(connection: Connection, tokenizer: str, memory: int) -> None:
    """A compiler that sleeps, works, or dies, at what it is told; for ``grammar_compiler.run``."""
    connection.send("")
    while True:
        try:
            _, text = connection.recv()
        except EOFError:
            return
        if text.startswith("first "):  # first PATH WHAT: what to do the first time
            _, path, text = text.split(" ", 2)
            if Path(path).exists():
                text = "sleep 0"
            with Path(path).open("a") as file:
                file.write("tried ")
        what, _, number = text.partition(" ")
        if what == "die":
            os._exit(int(number))
        if what == "sleep":
            time.sleep(float(number))
        until = time.process_time() + (float(number) if what == "work" else 0)
        while time.process_time() < until:
            pass
        connection.send(grammar_compiler.TOO_MUCH_MEMORY if what == "grow" else "")


def die_at_once(connection: Connection, tokenizer: str, memory: int) -> None:
    """A compiler that does not start."""


def regex(text: str) -> Any:
    return SimpleNamespace(json=None, regex=text, grammar=None, structural_tag=None, choice=None)


async def cancel(*tasks: asyncio.Task[None]) -> None:
    """Let the clients of ``tasks`` leave."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task

"""The compiler's process as the front end sees it: started, asked, watched, killed."""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from typing import Any

from triton_vllm.errors import UnavailableError, one_line
from triton_vllm.limits import grammar_compiler

_MEMORY = 4 << 30  # bytes of address space, above what the process has when it starts
_START_SECONDS = 120.0
_END_SECONDS = 1.0
_POLL_SECONDS = 0.05
_PATIENCE = 10  # times the limit, where the machine is too busy to let the compiler work


class NoGrammarProcess:
    """Tries nothing."""

    def compile(self, kind: str, text: str) -> str:
        """Return "", that nothing is wrong."""
        return ""

    def end(self) -> None:
        """Do nothing."""


class GrammarProcess:
    """A process that compiles one grammar after the other, started when there is one to compile.

    One thread calls it, and outlives it: Linux ends the process with the thread that started it
    (child_process.py). When ``stopping`` is set it raises UnavailableError soon.
    """

    def __init__(
        self, seconds: float, tokenizer: str, stopping: threading.Event, memory: int = _MEMORY
    ) -> None:
        """Give each grammar ``seconds``, and ``memory`` bytes."""
        self._seconds = seconds
        self._start_with = (tokenizer, memory)
        self._stopping = stopping
        self._process: Any = None
        self._connection: Any = None

    def compile(self, kind: str, text: str) -> str:
        """Return what is wrong with a grammar, "" for nothing.

        Raises UnavailableError if that cannot be told: there is no process, or the machine is too
        busy. Whatever goes wrong, the next grammar has a new process.
        """
        try:
            self._have_process()
            wrong = self._ask(kind, text)
        except UnavailableError:
            self.end()
            raise
        if wrong:
            self.end()
        return wrong

    def _ask(self, kind: str, text: str) -> str:
        try:
            self._connection.send((kind, text))
            return self._answer(self._seconds, self._seconds * _PATIENCE)
        except (EOFError, OSError):
            self._process.join(_END_SECONDS)
            code = self._process.exitcode
            return f"ended the compiler (exit code {code}): too much memory, or not for xgrammar"

    def _answer(self, seconds: float, patience: float) -> str:
        """Return what the process answers, or that it takes longer than ``seconds``.

        Its processor time must say so, too: a machine that stood still proves nothing.
        """
        since, worked = time.monotonic(), self._processor_seconds()
        while not self._connection.poll(_POLL_SECONDS):
            waited = time.monotonic() - since
            if self._stopping.is_set():
                raise UnavailableError("the model is being unloaded")
            if waited >= seconds and self._processor_seconds() - worked >= seconds:
                return f"takes longer than {seconds:g} s to compile, the limit"
            if waited >= patience:
                raise UnavailableError(
                    f"the machine is too busy: no grammar was compiled in {patience:g} s"
                )
        return str(self._connection.recv())

    def _processor_seconds(self) -> float:
        """Return the time that all threads of the process have run."""
        clock = ~self._process.pid << 3 | 2  # as clock_getcpuclockid(3) makes it
        return time.clock_gettime(clock)

    def _have_process(self) -> None:
        """Start the process if there is none, or none any more. Raises UnavailableError."""
        if self._process is not None and self._process.is_alive():
            return
        self.end()
        try:
            self._start()
            self._answer(math.inf, _START_SECONDS)
        except (EOFError, OSError) as error:
            why = one_line(error)
        else:
            return
        # Not as the error's cause: its traceback would hold descriptors of multiprocessing's.
        raise UnavailableError(f"no process to try a grammar in: {why}")

    def _start(self) -> None:
        # Spawned: it dies with this process (child_process.py), as the engine does.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=grammar_compiler.run,
            args=(theirs, *self._start_with),
            name="grammar-compiler",
            daemon=True,
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process, self._connection = process, ours

    def end(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._connection.close()
            self._process = None

"""Checks finished answers against their schemas, off the event loop, and counts what is wrong."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from triton_vllm.errors import UnavailableError, one_line
from triton_vllm.limits import schema_check
from triton_vllm.limits.sandbox import JobError, Sandbox
from triton_vllm.limits.schema_check import UNCHECKED, Answer, Violation, violation

MAX_WAITING = 256  # answers that are checked, or wait for it, in one front end
_SECONDS = 2.0  # of processor time: a megabyte of JSON takes less


class AnswerCheck:
    """Compares answers with their schemas in a process of its own, which starts with the first.

    ``found`` counts violations by keyword; only the event loop writes it.
    """

    def __init__(self, seconds: float = _SECONDS) -> None:
        """Give each answer ``seconds``."""
        self.found: Counter[str] = Counter()
        self._waiting = 0
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._sandbox = Sandbox(schema_check.prepare, (), seconds, self._stopping)

    async def check(self, answer: Answer) -> list[Violation]:
        """Return what is wrong with an answer. Never raises: what cannot be checked is told."""
        if self._waiting >= MAX_WAITING:
            wrong = [violation(UNCHECKED, f"{MAX_WAITING} answers wait to be checked")]
        else:
            self._waiting += 1
            try:
                run = asyncio.get_running_loop().run_in_executor(self._thread, self._run, answer)
                wrong = await run
            except RuntimeError as error:  # the thread has ended
                wrong = [violation(UNCHECKED, one_line(error))]
            finally:
                self._waiting -= 1
        self.found.update(each["keyword"] for each in wrong)
        return wrong

    def _run(self, answer: Answer) -> list[Violation]:
        try:
            found: list[Violation] = self._sandbox.run(answer)
        except (JobError, UnavailableError) as error:
            return [violation(UNCHECKED, f"the check {one_line(error)}")]
        return found

    def stop(self) -> None:
        """End the process, for good."""
        self._stopping.set()
        self._thread.shutdown()
        self._sandbox.end()

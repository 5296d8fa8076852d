"""A limit for grammars: one that takes too long to compile is refused before the engine sees it.

vLLM compiles grammars in a thread of the engine core that nothing can stop. So each new grammar is
first compiled in a sandbox, a process that is killed when it takes too long. The front end
remembers what has passed, and for a while what has not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from triton_vllm.errors import RequestError, UnavailableError, one_line
from triton_vllm.limits import grammar_compiler
from triton_vllm.limits.sandbox import JobError, Sandbox

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 65_536
MAX_JOBS = 32  # compile jobs that run or wait in one front end
_REMEMBERED = 4096
_EXPIRES_SECONDS = 60.0  # a machine short of memory may have been at fault, and not the grammar


class NoGrammarSandbox:
    """No limit but that of the text's length."""

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long."""
        grammar_of(structured_outputs)

    def stop(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Job:
    """A compile job. Its result is why the grammar is refused, "" if it is not."""

    in_thread: Future[str]
    result: asyncio.Future[str]  # the same, in the event loop
    clients: int = 0  # that wait for it
    expires: float = math.inf  # when its result is no longer believed


class GrammarSandbox:
    """Compiles new grammars, one after the other, in a process of its own."""

    def __init__(self, seconds: float, tokenizer: Callable[[], str]) -> None:
        """Refuse what takes longer than ``seconds``; ``tokenizer`` returns xgrammar's, as JSON.

        The process starts now, in the background: importing xgrammar takes seconds, on a busy
        machine tens of them, for which the first grammar would wait.
        """
        self._jobs: OrderedDict[bytes, _Job] = OrderedDict()  # the least recently asked for first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._stopping = threading.Event()
        self._sandbox: Sandbox | None = None
        self._thread.submit(self._warm_up, seconds, tokenizer)

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long or takes too long to compile.

        Raises UnavailableError if the sandbox cannot compile now.
        """
        kind, text = grammar_of(structured_outputs)
        key = hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
        job = self._jobs.get(key)
        if job is None or time.monotonic() >= job.expires:
            job = self._queue(key, kind, text)
        self._jobs.move_to_end(key)
        job.clients += 1
        try:
            failure = await asyncio.shield(job.result)
        finally:
            job.clients -= 1
            # A job that has begun goes on, because ending it would cost a new process.
            if not job.clients and job.in_thread.cancel():
                self._forget(key, job)
        if failure:
            raise RequestError(f'structured_outputs: "{kind}": {failure}')

    def _queue(self, key: bytes, kind: str, text: str) -> _Job:
        waiting = sum(not job.result.done() for job in self._jobs.values())
        if waiting >= MAX_JOBS:
            raise UnavailableError(
                f"{waiting} new grammars wait to be compiled, the limit of this front end "
                f"is {MAX_JOBS}: try again later"
            )
        try:
            in_thread = self._thread.submit(self._compile, kind, text)
        except RuntimeError as error:  # no more threads, or stopped
            raise UnavailableError(f"no grammar can be compiled: {one_line(error)}") from error
        job = self._jobs[key] = _Job(in_thread, asyncio.wrap_future(in_thread))
        job.result.add_done_callback(lambda _: self._done(key, job))
        if len(self._jobs) > _REMEMBERED:
            self._jobs.popitem(last=False)
        return job

    def _done(self, key: bytes, job: _Job) -> None:
        if job.result.cancelled():
            return
        if job.result.exception() is not None:
            self._forget(key, job)
        elif job.result.result():
            job.expires = time.monotonic() + _EXPIRES_SECONDS

    def _forget(self, key: bytes, job: _Job) -> None:
        if self._jobs.get(key) is job:  # not one that is newer
            del self._jobs[key]

    def _compile(self, kind: str, text: str) -> str:
        """Return why a grammar is refused, "" if it is not. Runs in the thread."""
        try:
            if self._stopping.is_set():
                raise UnavailableError("the model is being unloaded")
            if self._sandbox is not None:
                self._sandbox.run((kind, text))
        except JobError as error:
            return f"cannot be compiled: {error}"
        except UnavailableError as error:
            if not self._stopping.is_set():
                logger.warning(f"a grammar was refused uncompiled: {one_line(error)}")
            raise
        return ""

    def _warm_up(self, seconds: float, tokenizer: Callable[[], str]) -> None:
        try:
            arguments = (tokenizer(),)
        except Exception as error:  # then the engine's xgrammar has none either
            logger.warning(f"grammars go to the engine without a sandbox: {one_line(error)}")
            return
        self._sandbox = Sandbox(grammar_compiler.prepare, arguments, seconds, self._stopping)
        try:
            self._sandbox.start()
        except UnavailableError as error:  # the next grammar tries again
            if not self._stopping.is_set():
                logger.warning(f"the sandbox for grammars did not start: {one_line(error)}")
            self._sandbox.end()

    def stop(self) -> None:
        """End the process permanently. Waiting requests get UnavailableError."""
        self._stopping.set()
        self._thread.shutdown()
        if self._sandbox is not None:
            self._sandbox.end()


def grammar_of(structured_outputs: Any) -> tuple[str, str]:
    """Return the kind and the text of what vLLM's ``StructuredOutputsParams`` asks for.

    Raises RequestError for a text that is too long.
    """
    kinds = ("json", "regex", "grammar", "structural_tag")
    kind = next((kind for kind in kinds if getattr(structured_outputs, kind, None)), "choice")
    given = getattr(structured_outputs, kind, None) or []
    text = given if isinstance(given, str) else json.dumps(given)
    if kind == "choice":
        kind, text = "grammar", grammar_compiler.choices_as_grammar(given)
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f'structured_outputs: "{kind}": {len(text)} characters, allowed: {MAX_CHARACTERS}'
        )
    return kind, text


def grammar_sandbox(
    seconds: float, tokenizer: Callable[[], str] | None
) -> GrammarSandbox | NoGrammarSandbox:
    """Return the sandbox that the operator has set, where the grammars' library needs one."""
    if not seconds or tokenizer is None:
        return NoGrammarSandbox()
    return GrammarSandbox(seconds, tokenizer)

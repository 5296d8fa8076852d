"""A limit for grammars: one that takes too long to compile is refused, before the engine sees it.

A short schema can take minutes to compile, in a thread of the engine core that nobody can stop. So
each grammar is compiled once on trial, in a process that is killed when it takes too long; what has
passed is remembered, what has not for a while.
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
from triton_vllm.limits.grammar_process import GrammarProcess, NoGrammarProcess

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 65_536
MAX_TRIALS = 32  # new grammars that are tried, or wait for it, in one front end
_REMEMBERED = 4096
_EXPIRES_SECONDS = 60.0  # a machine short of memory may have been at fault, and not the grammar


class NoGrammarLimit:
    """No limit but that of the text's length."""

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long."""
        grammar_of(structured_outputs)

    def stop(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class _Trial:
    """A grammar that is tried, or waits for it, and the number of ``clients`` that wait for it.

    ``work`` is what the thread does, ``verdict`` its result in the event loop: what is wrong.
    """

    work: Future[str]
    verdict: asyncio.Future[str]
    clients: int = 0


class GrammarLimit:
    """Compiles new grammars on trial, one after the other, in a process of its own.

    ``check`` belongs to the event loop, the process to one thread.
    """

    def __init__(self, seconds: float, tokenizer: Callable[[], str]) -> None:
        """Refuse what takes longer than ``seconds``.

        The process is started with the first grammar; ``tokenizer`` returns what it needs.
        """
        self._seconds = seconds
        self._tokenizer = tokenizer
        self._trials: dict[bytes, _Trial] = {}
        self._verdicts: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # and until when
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
        self._stopping = threading.Event()
        self._process: GrammarProcess | NoGrammarProcess | None = None

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long or takes too long to compile.

        Raises UnavailableError where that cannot be told now.
        """
        kind, text = grammar_of(structured_outputs)
        key = hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
        wrong, until = self._verdicts.get(key, ("", 0.0))
        if time.monotonic() < until:
            self._verdicts.move_to_end(key)
        else:
            wrong = await self._judge(key, kind, text)
        if wrong:
            raise RequestError(f'structured_outputs: "{kind}": {wrong}')

    async def _judge(self, key: bytes, kind: str, text: str) -> str:
        """Return what a trial finds, one trial for all clients that ask at the same time."""
        trial = self._trials.get(key) or self._queue(key, kind, text)
        trial.clients += 1
        try:
            return await asyncio.shield(trial.verdict)
        finally:
            trial.clients -= 1
            # One that has begun goes on: the process would only have to be started anew.
            if not trial.clients and trial.work.cancel():
                del self._trials[key]

    def _queue(self, key: bytes, kind: str, text: str) -> _Trial:
        if len(self._trials) >= MAX_TRIALS:
            raise UnavailableError(
                f"{len(self._trials)} new grammars wait to be tried, the limit of this front end "
                f"is {MAX_TRIALS}: try again later"
            )
        try:
            work = self._thread.submit(self._try, kind, text)
        except RuntimeError as error:  # no more threads, or stopped
            raise UnavailableError(f"no grammar can be tried: {one_line(error)}") from error
        trial = self._trials[key] = _Trial(work, asyncio.wrap_future(work))
        trial.verdict.add_done_callback(lambda verdict: self._remember(key, verdict))
        return trial

    def _remember(self, key: bytes, verdict: asyncio.Future[str]) -> None:
        if verdict.cancelled():
            return
        del self._trials[key]
        if verdict.exception() is None:
            wrong = verdict.result()
            until = time.monotonic() + _EXPIRES_SECONDS if wrong else math.inf
            self._verdicts[key] = wrong, until
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)

    def _try(self, kind: str, text: str) -> str:
        """Return what is wrong with a grammar, if anything."""
        if self._stopping.is_set():
            raise UnavailableError("the model is being unloaded")
        if self._process is None:
            self._process = self._make_process()
        try:
            return self._process.compile(kind, text)
        except UnavailableError as error:
            logger.warning(f"a grammar was refused untried: {one_line(error)}")
            raise

    def _make_process(self) -> GrammarProcess | NoGrammarProcess:
        try:
            tokenizer = self._tokenizer()
        except Exception as error:  # then the engine's xgrammar has none either
            logger.warning(f"grammars go to the engine untried: {one_line(error)}")
            return NoGrammarProcess()
        return GrammarProcess(self._seconds, tokenizer, self._stopping)

    def stop(self) -> None:
        """End the process, for good. Who waits for a trial gets UnavailableError."""
        self._stopping.set()
        self._thread.shutdown()
        if self._process is not None:
            self._process.end()


def grammar_of(structured_outputs: Any) -> tuple[str, str]:
    """Return the kind and the text of what vLLM's ``StructuredOutputsParams`` asks for.

    Raises RequestError for a text that is too long.
    """
    for kind in ("json", "regex", "grammar", "structural_tag"):
        given = getattr(structured_outputs, kind, None)
        if given:
            text = given if isinstance(given, str) else json.dumps(given)
            break
    else:
        choices = getattr(structured_outputs, "choice", None) or []
        kind, text = "grammar", grammar_compiler.choices_as_grammar(choices)
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f'structured_outputs: "{kind}": {len(text)} characters, allowed: {MAX_CHARACTERS}'
        )
    return kind, text


def limit_grammars(
    seconds: float, tokenizer: Callable[[], str] | None
) -> GrammarLimit | NoGrammarLimit:
    """Return the limit that the operator has set, where the grammars' backend needs one."""
    if not seconds or tokenizer is None:
        return NoGrammarLimit()
    return GrammarLimit(seconds, tokenizer)

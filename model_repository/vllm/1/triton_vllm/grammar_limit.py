"""A limit for grammars: one that takes too long to compile is refused, before the engine sees it.

A short schema can take minutes to compile, in a thread of the engine core that nobody can stop. So
each grammar is compiled once on trial, in a process that is killed when it takes too long; what has
passed is remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from triton_vllm import grammar_compiler
from triton_vllm.errors import RequestError, one_line
from triton_vllm.streaming import Log

MAX_CHARACTERS = 65_536
_REMEMBERED = 4096
_START_SECONDS = 120.0


class NoGrammarLimit:
    """No limit but that of the text's length."""

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long."""
        grammar_of(structured_outputs)

    def stop(self) -> None:
        """Do nothing."""


class GrammarLimit:
    """Compiles new grammars on trial, one after the other, in a process of its own."""

    def __init__(self, seconds: float, tokenizer: Callable[[], str], log: Log) -> None:
        """Refuse what takes longer than ``seconds``.

        The process is started with the first grammar; ``tokenizer`` returns what it needs.
        """
        self._seconds = seconds
        self._tokenizer = tokenizer
        self._log = log
        self._turn = asyncio.Lock()
        self._trials: set[asyncio.Task[None]] = set()
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # of a grammar: what is wrong
        self._process: Any = None
        self._connection: Any = None

    async def check(self, structured_outputs: Any) -> None:
        """Raise RequestError for a grammar that is too long or takes too long to compile."""
        kind, text = grammar_of(structured_outputs)
        key = hashlib.sha256(f"{kind} {text}".encode(errors="surrogatepass")).digest()
        if key not in self._verdicts:
            # A trial is not given up when its client leaves: the next one would get its answer.
            trial = asyncio.create_task(self._judge(key, kind, text))
            self._trials.add(trial)
            trial.add_done_callback(self._trials.discard)
            await asyncio.shield(trial)
        self._verdicts.move_to_end(key)
        wrong = self._verdicts[key]
        if wrong:
            raise RequestError(f'structured_outputs: "{kind}": {wrong}')

    async def _judge(self, key: bytes, kind: str, text: str) -> None:
        async with self._turn:
            if key not in self._verdicts:
                loop = asyncio.get_running_loop()
                self._verdicts[key] = await loop.run_in_executor(None, self._try, kind, text)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def _try(self, kind: str, text: str) -> str:
        """Return what is wrong with a grammar, if anything."""
        try:
            if self._process is None:
                self._start()
        except Exception as error:
            self.stop()
            self._log.log_warn(f"a grammar goes to the engine untried: {one_line(error)}")
            return ""
        try:
            self._connection.send((kind, text))
            if self._connection.poll(self._seconds):
                self._connection.recv()
                return ""
            wrong = f"takes longer than {self._seconds:g} s to compile, the limit"
        except (EOFError, OSError):
            wrong = "takes too much memory to compile"
        self.stop()
        return wrong

    def _start(self) -> None:
        # Spawned: it dies with this process (child_process.py), as the engine does.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=grammar_compiler.run,
            args=(theirs, self._tokenizer()),
            name="grammar-compiler",
            daemon=True,
        )
        self._process.start()
        theirs.close()
        if not self._connection.poll(_START_SECONDS):
            raise TimeoutError(f"no grammar compiler within {_START_SECONDS:g} s")
        self._connection.recv()


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
    seconds: float, tokenizer: Callable[[], str] | None, log: Log
) -> GrammarLimit | NoGrammarLimit:
    """Return the limit that the operator has set, where the grammars' backend needs one."""
    if not seconds or tokenizer is None:
        return NoGrammarLimit()
    return GrammarLimit(seconds, tokenizer, log)

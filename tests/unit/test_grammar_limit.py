"""Grammars that take too long, tried in a process that is killed for it."""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fakes import FakeLog
from triton_vllm import grammar_compiler
from triton_vllm.errors import RequestError
from triton_vllm.grammar_limit import (
    MAX_CHARACTERS,
    GrammarLimit,
    NoGrammarLimit,
    grammar_of,
    limit_grammars,
)


def compile_as_told(connection: Connection, tokenizer: str) -> None:
    """A compiler that sleeps, or dies, at what it is told; stands for ``grammar_compiler.run``."""
    connection.send(None)
    while True:
        try:
            _, text = connection.recv()
        except EOFError:
            return
        if text == "memory":
            raise SystemExit
        time.sleep(float(text))
        connection.send(None)


def die_at_once(connection: Connection, tokenizer: str) -> None:
    """A compiler that does not start."""


@pytest.fixture
def limit(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A limit of two seconds."""
    monkeypatch.setattr(grammar_compiler, "run", compile_as_told)
    limit = GrammarLimit(2.0, lambda: "{}", log)
    yield limit
    limit.stop()


def regex(text: str) -> Any:
    return SimpleNamespace(json=None, regex=text, grammar=None, structural_tag=None, choice=None)


def test_what_compiles_in_time_passes(limit: GrammarLimit) -> None:
    """And is remembered: the second time costs nothing."""

    async def main() -> float:
        await limit.check(regex("0.2"))
        since = time.monotonic()
        await limit.check(regex("0.2"))
        return time.monotonic() - since

    assert asyncio.run(main()) < 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60", 'structured_outputs: "regex": takes longer than 2 s'), ("memory", "too much memory")],
)
def test_what_does_not_is_refused(limit: GrammarLimit, text: str, expected: str) -> None:
    """Each time, without another trial; the next grammar is tried in a new process."""

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(RequestError, match=expected):
                await limit.check(regex(text))
        await limit.check(regex("0.01"))

    asyncio.run(main())


def test_a_client_that_leaves_does_not_mix_up_the_answers(limit: GrammarLimit) -> None:
    """Its trial goes on, and the next grammar gets its own verdict."""

    async def main() -> None:
        await limit.check(regex("0.01"))
        leaving = asyncio.create_task(limit.check(regex("1")))
        await asyncio.sleep(0.1)
        leaving.cancel()
        with pytest.raises(RequestError, match="takes longer"):
            await limit.check(regex("60"))

    asyncio.run(main())


def test_without_a_compiler_grammars_pass_untried(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a tokenizer that xgrammar does not know: the log says so, the engine decides."""
    monkeypatch.setattr(grammar_compiler, "run", die_at_once)
    limit = GrammarLimit(2.0, lambda: "{}", log)
    asyncio.run(limit.check(regex("a+")))
    limit.stop()
    assert [("warn", True)] == [(level, "untried" in line) for level, line in log.lines]


def test_the_grammar_is_read() -> None:
    """Of the kinds that vLLM knows; a schema may be an object; choices are a grammar."""
    kinds = SimpleNamespace(json={"type": "null"}, regex=None, choice=None)
    assert ("json", '{"type": "null"}') == grammar_of(kinds)
    assert ("regex", "a+") == grammar_of(regex("a+"))
    choices = SimpleNamespace(choice=["a", 'b"'])
    assert ("grammar", 'root ::= "a" | "b\\""') == grammar_of(choices)


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_long_text_is_refused_unread(seconds: float, log: FakeLog) -> None:
    """With or without a limit of time."""
    limit = limit_grammars(seconds, lambda: "{}", log)
    expected = f"{MAX_CHARACTERS + 1} characters, allowed: {MAX_CHARACTERS}"
    with pytest.raises(RequestError, match=expected):
        asyncio.run(limit.check(regex("a" * (MAX_CHARACTERS + 1))))


def test_no_limit_is_no_process(log: FakeLog) -> None:
    """0 turns it off, and a backend that needs none has none."""
    assert isinstance(limit_grammars(0, lambda: "", log), NoGrammarLimit)
    assert isinstance(limit_grammars(5, None, log), NoGrammarLimit)

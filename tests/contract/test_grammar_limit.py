"""Grammars on trial, with the real xgrammar."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import string
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams

from tests.hostile import slow_schema
from triton_vllm.limits import grammar_compiler
from triton_vllm.limits.grammar import GrammarLimit
from triton_vllm.limits.grammar_process import GrammarProcess
from triton_vllm.vllm_api import api as vllm_api

pytestmark = pytest.mark.timeout(300)

SLOW_REGEX = ".*a.{200}b.{0,200}"


def tokenizer() -> str:
    """Return a vocabulary of the usual size."""
    words = random.Random(7)
    letters = string.ascii_lowercase + " "
    vocabulary = list(string.printable)
    vocabulary += ["".join(words.choices(letters, k=words.randint(2, 8))) for _ in range(40_000)]
    return str(xgrammar.TokenizerInfo(vocabulary).serialize_json())


def test_grammars(caplog: pytest.LogCaptureFixture) -> None:
    """Those of each kind are compiled, and what xgrammar refuses is left to vLLM."""
    limit = GrammarLimit(30.0, tokenizer)

    async def main() -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        await limit.check(StructuredOutputsParams(json=schema))
        await limit.check(StructuredOutputsParams(choice=["yes", 'n"o']))
        await limit.check(StructuredOutputsParams(regex="[ab]+"))
        await limit.check(StructuredOutputsParams(grammar='root ::= "a" | "b"'))
        await limit.check(StructuredOutputsParams(regex="["))  # vLLM says what is wrong with it

    asyncio.run(main())
    limit.stop()
    assert [] == caplog.messages, "it would say that a grammar was not tried"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "["),
        ("regex", "\0"),
        ("regex", "\udc00"),
        ("regex", "(?=a)b"),
        ("regex", "a{99999999999999999999}"),
        ("json", "{"),
        ("json", "5"),
        ("json", '{"type": "nosuch"}'),
        ("json", '{"$ref": "#/nope"}'),
        ("json", '{"type": "integer", "minimum": 5, "maximum": 1}'),
        ("grammar", ""),
        ("grammar", "root ::= nosuch"),
        ("grammar", "start: nosuch"),
        ("structural_tag", "{"),
        ("structural_tag", '{"type": "x"}'),
        ("structural_tag", '{"structures": [{}], "triggers": []}'),
        ("structural_tag", '{"structures": []}'),
    ],
)
def test_a_refusal_is_known_as_one(process: GrammarProcess, kind: str, text: str) -> None:
    """Of all kinds: vLLM has the last word."""
    assert process.compile(kind, text) == ""


@pytest.fixture(scope="module")
def process() -> Iterator[GrammarProcess]:
    """A compiler that has ten seconds."""
    process = GrammarProcess(10.0, tokenizer(), threading.Event())
    yield process
    process.end()


def test_what_takes_too_much_memory_is_not_compiled() -> None:
    """It fails with an error like those with which xgrammar refuses."""
    process = GrammarProcess(30.0, tokenizer(), threading.Event(), memory=128 << 20)
    many = " | ".join(f'"{number}x{number}"' for number in range(100_000))
    assert process.compile("grammar", f"root ::= {many}") == grammar_compiler.TOO_MUCH_MEMORY
    process.end()


SLOW_TAG = '{"structures": [{"begin": "<a>", "schema": %s, "end": "</a>"}], "triggers": ["<a"]}'


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", json.dumps(slow_schema(properties=10_000))),
        ("regex", SLOW_REGEX),
        ("grammar", f"start: /{SLOW_REGEX}/"),
        ("structural_tag", SLOW_TAG % json.dumps(slow_schema(properties=10_000))),
    ],
    ids=["schema", "regex", "Lark", "older tag"],
)
def test_what_takes_too_long_is_stopped(kind: str, text: str) -> None:
    """In every syntax that vLLM would take to the compiler, by a limit that the fastest exceeds."""
    process = GrammarProcess(0.1, tokenizer(), threading.Event())
    assert process.compile(kind, text).startswith("takes longer than 0.1 s to compile")
    process.end()


def test_the_limit_does_not_hold_the_engine() -> None:
    """It outlives the first one, which would leave its descriptors open after a restart."""

    class Engine:
        vllm_config = SimpleNamespace(structured_outputs_config=SimpleNamespace(backend="auto"))
        model_config = SimpleNamespace(skip_tokenizer_init=False, get_vocab_size=lambda: 100)

        def get_tokenizer(self) -> Any:
            return object()

    engine = Engine()
    engine_is_there = weakref.ref(engine)
    make = vllm_api.grammar_tokenizer(engine)
    assert make is not None
    del engine
    gc.collect()
    assert engine_is_there() is None

"""The sandbox for grammars, with the real xgrammar."""

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

from triton_vllm.limits import grammar_compiler
from triton_vllm.limits.grammar import GrammarSandbox
from triton_vllm.limits.sandbox import TOO_MUCH_MEMORY, JobError, Sandbox
from triton_vllm.vllm_api import api as vllm_api

pytestmark = pytest.mark.timeout(300)


def tokenizer() -> str:
    """Return a vocabulary of the usual size."""
    words = random.Random(7)
    letters = string.ascii_lowercase + " "
    vocabulary = list(string.printable)
    vocabulary += ["".join(words.choices(letters, k=words.randint(2, 8))) for _ in range(40_000)]
    return str(xgrammar.TokenizerInfo(vocabulary).serialize_json())


def test_grammars(caplog: pytest.LogCaptureFixture) -> None:
    """Those of each kind are compiled, and what xgrammar refuses is left to vLLM."""
    sandbox = GrammarSandbox(30.0, tokenizer)

    async def main() -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        await sandbox.check(StructuredOutputsParams(json=schema))
        await sandbox.check(StructuredOutputsParams(choice=["yes", 'n"o']))
        await sandbox.check(StructuredOutputsParams(regex="[ab]+"))
        await sandbox.check(StructuredOutputsParams(grammar='root ::= "a" | "b"'))
        await sandbox.check(StructuredOutputsParams(regex="["))  # vLLM says what is wrong with it

    asyncio.run(main())
    sandbox.stop()
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
def test_a_refusal_is_left_to_vllm(compiler: Sandbox, kind: str, text: str) -> None:
    """Of all kinds: vLLM has the last word."""
    assert compiler.run((kind, text)) is None


def compiler_with(seconds: float, **options: int) -> Sandbox:
    """Return a sandbox with a compiler that has a vocabulary of the usual size."""
    return Sandbox(grammar_compiler.prepare, (tokenizer(),), seconds, threading.Event(), **options)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Sandbox]:
    """A compiler that has ten seconds."""
    sandbox = compiler_with(10.0)
    yield sandbox
    sandbox.end()


def test_what_takes_too_much_memory_is_not_compiled() -> None:
    """The process ends with an error of memory, and the next grammar has a new one."""
    sandbox = compiler_with(30.0, memory=128 << 20)
    choices = grammar_compiler.choices_as_grammar([f"{n}x{n}" for n in range(100_000)])
    with pytest.raises(JobError, match=TOO_MUCH_MEMORY):
        sandbox.run(("grammar", choices))
    sandbox.end()


# Ordinary, and large enough that compiling takes tens of milliseconds: several ticks of the clock.
WORDS = "|".join(f"word{n}" for n in range(2000))
FORM = json.dumps(
    {"type": "object", "properties": {f"field{n}": {"type": "string"} for n in range(200)}}
)
TAG = '{"structures": [{"begin": "<a>", "schema": %s, "end": "</a>"}], "triggers": ["<a"]}'


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json", FORM),
        ("regex", WORDS),
        ("grammar", f"start: /{WORDS}/"),
        ("structural_tag", TAG % FORM),
    ],
    ids=["schema", "regex", "Lark", "older tag"],
)
def test_what_takes_longer_than_the_limit_is_stopped(kind: str, text: str) -> None:
    """In every syntax that vLLM takes to the compiler: ordinary grammars, and a tiny limit."""
    sandbox = compiler_with(0.001)
    with pytest.raises(JobError, match=r"takes longer than 0\.001 s, the limit"):
        sandbox.run((kind, text))
    sandbox.end()


def test_the_limit_does_not_hold_the_engine() -> None:
    """It outlives the first one, which would leave its descriptors open after a restart."""

    class Engine:
        vllm_config = SimpleNamespace(structured_outputs_config=SimpleNamespace(backend="xgrammar"))
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

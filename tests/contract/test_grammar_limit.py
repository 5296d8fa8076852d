"""Grammars on trial, with the real xgrammar."""

from __future__ import annotations

import asyncio
import random
import string

import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams

from tests.unit.fakes import FakeLog
from triton_vllm.grammar_limit import GrammarLimit


def tokenizer() -> str:
    """Return a vocabulary of the usual size."""
    words = random.Random(7)
    letters = string.ascii_lowercase + " "
    vocabulary = list(string.printable)
    vocabulary += ["".join(words.choices(letters, k=words.randint(2, 8))) for _ in range(40_000)]
    return str(xgrammar.TokenizerInfo(vocabulary).serialize_json())


@pytest.mark.timeout(300)
def test_grammars(log: FakeLog) -> None:
    """Those of each kind are compiled, and what xgrammar refuses is left to vLLM."""
    limit = GrammarLimit(30.0, tokenizer, log)

    async def main() -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        await limit.check(StructuredOutputsParams(json=schema))
        await limit.check(StructuredOutputsParams(choice=["yes", 'n"o']))
        await limit.check(StructuredOutputsParams(regex="[ab]+"))
        await limit.check(StructuredOutputsParams(grammar='root ::= "a" | "b"'))
        await limit.check(StructuredOutputsParams(regex="["))  # vLLM says what is wrong with it

    asyncio.run(main())
    limit.stop()
    assert log.lines == [], "it would say that a grammar was not tried"

"""Grammars on trial, with the real xgrammar."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Iterator

import pytest
import xgrammar
from vllm.sampling_params import StructuredOutputsParams

from tests.unit.fakes import FakeLog
from triton_vllm.errors import RequestError
from triton_vllm.grammar_limit import GrammarLimit


def tokenizer() -> str:
    """Return a vocabulary of the usual size."""
    words = random.Random(7)
    letters = string.ascii_lowercase + " "
    vocabulary = list(string.printable)
    vocabulary += ["".join(words.choices(letters, k=words.randint(2, 8))) for _ in range(40_000)]
    return str(xgrammar.TokenizerInfo(vocabulary).serialize_json())


@pytest.fixture(scope="module")
def limit() -> Iterator[GrammarLimit]:
    """A limit of one second, whose process lives for all tests."""
    limit = GrammarLimit(1.0, tokenizer, FakeLog())
    yield limit
    limit.stop()


@pytest.mark.timeout(300)
def test_grammars(limit: GrammarLimit) -> None:
    """Usual ones of each kind pass, a pathological one is stopped, and what follows passes."""

    async def main() -> None:
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        await limit.check(StructuredOutputsParams(json=schema))
        await limit.check(StructuredOutputsParams(choice=["yes", 'n"o']))
        many = {f"p{number}": {"type": "string"} for number in range(2000)}
        pathological = StructuredOutputsParams(json={"type": "object", "properties": many})
        with pytest.raises(RequestError, match="takes longer than 1 s to compile"):
            await limit.check(pathological)
        await limit.check(StructuredOutputsParams(regex="[ab]+"))
        await limit.check(StructuredOutputsParams(grammar='root ::= "a" | "b"'))
        await limit.check(StructuredOutputsParams(regex="["))  # vLLM says what is wrong with it

    asyncio.run(main())

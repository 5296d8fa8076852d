"""vLLM's tool parsers, whole and streamed: what the docs say of them is what they do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import vllm
from vllm.tool_parsers import ToolParserManager

from tool_parsers_formats import FORMATS, NOT_TRIED
from tool_parsers_table import PAGE, cells_of

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))
TOKENIZER = str(CACHE / "models/SmolLM2-135M-Instruct")
MEASURED = PAGE.measured()[f"vLLM {vllm.__version__}"]
REGISTERED = ToolParserManager.list_registered()


def test_every_parser_is_in_the_docs() -> None:
    """A parser that vLLM adds is tried, or is listed as not tried."""
    assert set(REGISTERED) - set(NOT_TRIED) == set(MEASURED)
    assert set(MEASURED) <= set(FORMATS)


@pytest.mark.parametrize("parser", MEASURED)
def test_what_a_parser_does_is_what_the_docs_say(parser: str) -> None:
    """Case by case, whole and in pieces of a stream."""
    assert MEASURED[parser] == cells_of(parser, TOKENIZER)

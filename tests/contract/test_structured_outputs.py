"""One library for an engine's life, with vLLM's own checks and the libraries' own matchers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm
from transformers import AutoTokenizer
from vllm.sampling_params import StructuredOutputsParams

from structured_outputs_table import CELLS, LIBRARIES, VLLM_CHECKS, cells_of, vllm_refuses
from triton_vllm.errors import RequestError, SettingsError
from triton_vllm.vllm_api.structured_outputs import (
    StructuredOutputsCheck,
    choose_library,
    library_of,
)

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CHECKPOINT = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache")) / "models"
MEASURED = json.loads(CELLS.read_text(encoding="utf-8"))
# No supported vLLM takes it for xgrammar.
UNKNOWN = {"type": "string", "format": "regex"}
PLAIN = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NEGATED = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}, "required": ["a"]}


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_a_library_does_is_what_the_docs_say(library: str) -> None:
    """Cell by cell, for the version that is installed."""
    assert MEASURED[f"{library} {version(library)}"] == cells_of(library)


@pytest.mark.parametrize("backend", VLLM_CHECKS)
def test_what_vllm_refuses_is_what_the_docs_say(backend: str) -> None:
    """Before the library sees it."""
    assert MEASURED[f"vLLM {vllm.__version__}, {backend}"] == vllm_refuses(backend)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT / "SmolLM2-135M-Instruct")


async def compiles(given: Any) -> None:
    """Pass all, in place of the sandbox."""


def check_of(
    tokenizer: Any, library: str = "xgrammar", *, refuse: bool = False, sandbox: Any = compiles
) -> Any:
    """Return the check of an engine with a library."""
    outputs = SimpleNamespace(backend=library)
    llm = SimpleNamespace(
        model_config=SimpleNamespace(skip_tokenizer_init=False, is_diffusion=False),
        vllm_config=SimpleNamespace(structured_outputs_config=outputs),
        get_tokenizer=lambda: tokenizer,
    )

    return StructuredOutputsCheck(llm, sandbox, refuse=refuse)


def result(check: Any, **given: Any) -> str:
    """Return the error for a request, "" if it passes."""
    try:
        asyncio.run(check.check(StructuredOutputsParams(**given)))
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("backend", ["auto", "guidance"])
def test_the_first_request_does_not_choose_the_library(backend: str) -> None:
    """VLLM's "auto" is replaced at the load; the operator's choice is kept."""
    outputs = SimpleNamespace(backend=backend)
    model = SimpleNamespace(skip_tokenizer_init=False, tokenizer_mode="auto")
    choose_library(SimpleNamespace(structured_outputs_config=outputs, model_config=model))
    assert {"auto": "xgrammar"}.get(backend, backend) == outputs.backend


def test_keywords_are_refused_only_for_libraries_that_are_known() -> None:
    """The load fails where the operator asks for it with another one."""
    outputs = SimpleNamespace(backend="outlines")
    config = SimpleNamespace(structured_outputs_config=outputs)
    assert library_of(config, "/m", refuse=False).startswith("outlines_core ")
    with pytest.raises(SettingsError, match="needs the library xgrammar or guidance, got outlines"):
        library_of(config, "/m", refuse=True)


def test_the_result_does_not_depend_on_what_came_before(tokenizer: Any) -> None:
    """In every order, on one check and on several, as front ends have."""
    requests: list[dict[str, Any]] = [
        {"json": UNKNOWN},
        {"json": PLAIN},
        {"regex": "a(?=b)b"},
        {"choice": ["a", "b"]},
    ]
    alone = [result(check_of(tokenizer), **each) for each in requests]
    assert [True, False, True, False] == [bool(each) for each in alone]
    for order in itertools.permutations(range(len(requests))):
        shared = check_of(tokenizer)
        results = {i: result(shared, **requests[i]) for i in order}
        assert alone == [results[i] for i in range(len(requests))]


def test_the_sandbox_comes_first(tokenizer: Any) -> None:
    """What is too much for it is never taken apart in this process."""

    async def too_much(given: Any) -> None:
        raise RequestError("too much")

    assert result(check_of(tokenizer, sandbox=too_much), json=UNKNOWN) == "too much"


def test_what_the_library_cannot_express_is_named(tokenizer: Any) -> None:
    """With its place, and the library that could."""
    given = {
        "json": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    }
    error = result(check_of(tokenizer, "guidance"), **given)
    assert 'guidance cannot express "uniqueItems" at "/properties/a/uniqueItems"' in error
    assert "neither xgrammar nor guidance can" in error


def test_the_library_that_could_is_named(tokenizer: Any) -> None:
    """By the setting that chooses it. What vLLM takes for xgrammar differs between versions."""
    error = result(check_of(tokenizer), json={"type": "integer", "multipleOf": 3})
    assert 'xgrammar cannot express "multipleOf" at "/multipleOf"' in error
    assert 'guidance could ("structured_outputs_config": {"backend": "guidance"}' in error


def test_schemas_with_ignored_keywords_are_refused_where_the_operator_wants_it(
    tokenizer: Any,
) -> None:
    """With the list; else they are served."""
    assert result(check_of(tokenizer), json=NEGATED) == ""
    error = result(check_of(tokenizer, refuse=True), json=NEGATED)
    assert '"not" at "/properties/a/not" (ignored)' in error
    assert "serving.unsupported_schema_keywords" in error
    assert result(check_of(tokenizer, refuse=True), json=PLAIN) == ""


def test_the_schemas_of_strict_tools_are_looked_at(tokenizer: Any) -> None:
    """They come as a structural tag, of the form that vLLM's tool parsers make."""
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag",
            "begin": "<tool>",
            "content": {"type": "json_schema", "json_schema": NEGATED},
            "end": "</tool>",
        },
    }
    assert result(check_of(tokenizer), structural_tag=json.dumps(tag)) == ""
    error = result(check_of(tokenizer, refuse=True), structural_tag=json.dumps(tag))
    assert '"not" at "/properties/a/not" (ignored)' in error

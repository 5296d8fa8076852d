"""One structured-output library for an engine's life, and the check of each request against it.

With vLLM's backend "auto" the first structured request chooses the library for the engine's life,
while each request is checked for the library that it would have got alone. So the same request
meets another library, depending on what a stranger asked before (seen with vLLM 0.32).
"""

from __future__ import annotations

import asyncio
import copy
import importlib.metadata
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.tokenizers import cached_tokenizer_from_config

from triton_vllm.errors import RequestError, SettingsError, one_line
from triton_vllm.limits.schema_support import KNOWN, Departure, Schema, departures, walk

# xgrammar is vLLM's own first choice, takes every tokenizer, and is the only library that compiles
# the structural tags of vLLM's tool parsers.
DEFAULT = "xgrammar"
_LIBRARIES = {  # vLLM's name of the backend: the package
    "xgrammar": "xgrammar",
    "guidance": "llguidance",
    "outlines": "outlines_core",
    "lm-format-enforcer": "lm-format-enforcer",
}
_MAX_NODES = 64  # of a schema, asked one by one which of them the library refuses
_MAX_LISTED = 10
_LETTERS_TO_XGRAMMAR = re.compile(r"\\[AZz]")  # escapes that it takes for letters
_SOURCE_LINE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+\.cc:\d+: ")  # of xgrammar's errors
_NO_ASSERTIONS = {"type", "$defs", "definitions", "title", "description", "default"}


def choose_library(config: Any) -> None:
    """Choose the library in a ``VllmConfig`` in which the operator has left it to vLLM.

    Mistral's Tekken tokenizers get llguidance, as with vLLM: xgrammar does not know their special
    tokens, which the grammars of Mistral's tool parser name.
    """
    chosen = config.structured_outputs_config
    if chosen.backend == "auto":
        model, tokenizer = config.model_config, None
        if not model.skip_tokenizer_init and getattr(model, "tokenizer_mode", "") == "mistral":
            tokenizer = cached_tokenizer_from_config(model)
        chosen.backend = "guidance" if getattr(tokenizer, "is_tekken", False) else DEFAULT


def library_of(config: Any, where: str, *, refuse: bool) -> str:
    """Return the name and version of the chosen library, for a line of the log.

    Raises SettingsError, naming the file ``where``, if ``refuse`` is set and the library's
    unsupported keywords are not known.
    """
    backend = config.structured_outputs_config.backend
    if refuse and backend not in KNOWN:
        raise SettingsError(
            f'{where}: "serving.unsupported_schema_keywords": "refuse" needs the library '
            f"{' or '.join(KNOWN)}, got {backend}"
        )
    package = _LIBRARIES[backend]
    return f"{package} {importlib.metadata.version(package)}"


class StructuredOutputsCheck:
    """Checks each structured request against the engine's library. Event loop only."""

    def __init__(
        self, llm: Any, compile_check: Callable[[Any], Awaitable[None]], *, refuse: bool
    ) -> None:
        """``compile_check`` refuses what is too much to compile.

        ``refuse``: refuse also schemas with keywords that the library ignores or narrows.
        """
        self._model = llm.model_config
        self._library = llm.vllm_config.structured_outputs_config.backend
        self._tokenizer = None if self._model.skip_tokenizer_init else llm.get_tokenizer()
        self._compile_check = compile_check
        self._refuse = refuse

    async def check(self, given: Any) -> None:
        """Raise RequestError for ``StructuredOutputsParams`` that the library cannot express.

        The error names the keyword, its place in the schema, and the library that could.
        """
        # First, as it keeps grammars that are too much from this process.
        await self._compile_check(given)
        if reason := self._refusal(given, self._library):
            # Off the event loop: it asks the library again, for parts of the schema.
            raise RequestError(await asyncio.to_thread(self._explain, given, reason))
        if self._refuse:
            found = [d for schema in schemas_of(given) for d in departures(schema, self._library)]
            if found:
                raise RequestError(self._listed(found))

    def _refusal(self, given: Any, library: str) -> str:
        """Return why vLLM refuses a request for a library, "" if it does not."""
        given = copy.copy(given)  # vLLM writes into it
        given._backend = None
        params = SamplingParams(structured_outputs=given)
        try:
            params._validate_structured_outputs(
                self._model, SimpleNamespace(backend=library), self._tokenizer
            )
        except Exception as error:
            return _SOURCE_LINE.sub("", one_line(error))
        return ""

    def _listed(self, found: list[Departure]) -> str:
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        return (
            f"structured_outputs: {self._library} does not enforce "
            f"{', '.join(map(str, found[:_MAX_LISTED]))}{more}; this model refuses such schemas "
            '("serving.unsupported_schema_keywords")'
        )

    def _explain(self, given: Any, reason: str) -> str:
        kind, culprits = "structured_outputs", self._culprits(given)
        for name in ("json", "regex", "choice", "grammar", "structural_tag"):
            if getattr(given, name, None):
                kind = f'structured_outputs: "{name}"'
        listed = ", ".join(f'"{keyword}" at "{at}"' for at, keyword in culprits)
        what = f"cannot express {listed}" if culprits else "refuses it"
        others = self._others(given, {keyword for _, keyword in culprits})
        return f"{kind}: {self._library} {what}: {reason}; {others}"

    def _others(self, given: Any, keywords: set[str]) -> str:
        """Say which other library takes a request and enforces ``keywords``."""
        for library in KNOWN:
            if library == self._library:
                continue
            if library == "xgrammar":  # not asked: what it takes may be too much for this process
                could = "might" if not _LETTERS_TO_XGRAMMAR.search(given.regex or "") else ""
            else:
                could = "" if self._refusal(given, library) else "could"
            ignored = {d.keyword for s in schemas_of(given) for d in departures(s, library)}
            if could and not ignored & keywords:
                setting = f'"structured_outputs_config": {{"backend": "{library}"}}'
                return f"{library} {could} ({setting} for the whole engine)"
        return "neither xgrammar nor guidance can"

    def _culprits(self, given: Any) -> list[tuple[str, str]]:
        """Return pointer and name of the keywords for which the library refuses a schema."""
        schema = next(iter(schemas_of(given)), None) if getattr(given, "json", None) else None
        nodes = sorted(list(walk(schema))[:_MAX_NODES], key=lambda each: -each[1].count("/"))
        culprits: list[tuple[str, str]] = []
        for node, at in nodes:  # the innermost first
            within = any(place.startswith(f"{at}/") for place, _ in culprits)
            if not within and self._refuses_schema(node):
                culprits += [(f"{at}/{name}", name) for name in self._guilty(node)]
        return culprits[:_MAX_LISTED]

    def _guilty(self, node: Schema) -> list[str]:
        """Return the keywords for which a schema is refused, alone or only together."""
        names = [name for name in node if name not in _NO_ASSERTIONS]
        typed = {"type": node["type"]} if "type" in node else {}
        alone = [name for name in names if self._refuses_schema({**typed, name: node[name]})]
        others = ((name, {n: node[n] for n in node if n != name}) for name in names)
        return alone or [name for name, rest in others if not self._refuses_schema(rest)]

    def _refuses_schema(self, schema: Any) -> bool:
        alone = json.dumps(_without_refs(schema))  # what a $ref leads to is a node of its own
        return bool(self._refusal(StructuredOutputsParams(json=alone), self._library))


def _without_refs(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_refs(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {}
    return {name: _without_refs(value) for name, value in schema.items() if name != "$defs"}


def schemas_of(given: Any) -> Iterator[Any]:
    """Yield the JSON schemas of ``StructuredOutputsParams``, those of structural tags too."""
    for text in (getattr(given, "json", None), getattr(given, "structural_tag", None)):
        if not text:
            continue
        try:
            value = json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError):
            continue
        if text is given.json:
            yield value
        else:
            yield from _tag_schemas(value)


def _tag_schemas(tag: Any) -> Iterator[Any]:
    """Yield the schemas in a structural tag, of the newer form or the older."""
    pending = [tag]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            for name, each in value.items():
                if name in ("json_schema", "schema") and isinstance(each, dict):
                    yield each
                else:
                    pending.append(each)

"""The output ``schema_errors``: what a finished answer violates of the client's JSON schema."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from triton_vllm.limits.schema_check import Answer, Violation, schema_text
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.outputs import SCHEMA_ERRORS
from triton_vllm.protocol.requests import ChatPrompt, Generation, GenerationRequest

Check = Callable[[Answer], Awaitable[list[Violation]]]
_CUT = ("length", "abort")


def checked(generation: Generation, request: GenerationRequest, check: Check) -> Generation:
    """Return a generation whose final delta holds the violations, if the client asks for them."""
    if SCHEMA_ERRORS not in request.outputs:
        return generation
    reader = _Reader(request, check)

    async def deltas() -> AsyncGenerator[Delta, None]:
        async with contextlib.aclosing(generation.outputs()) as outputs:
            async for output in outputs:
                yield await reader.read(generation.read(output))

    return Generation(deltas, lambda delta: delta)


class _Reader:
    """Collects what each sequence says; checks it when the last one has ended."""

    def __init__(self, request: GenerationRequest, check: Check) -> None:
        self._check = check
        self._schema = schema_of(request.sampling_params.structured_outputs)
        chat = request.prompt if isinstance(request.prompt, ChatPrompt) else None
        self._tools = tool_schemas(chat and chat.options.get("tools"))
        self._texts = [""] * request.num_sequences
        self._calls: list[dict[int, dict[str, str]]] = [{} for _ in self._texts]
        self._reasons: list[str | None] = [None] * request.num_sequences

    async def read(self, delta: Delta) -> Delta:
        """Return the delta, with the violations if it is the final one."""
        if delta.extras is None:
            return delta
        for i, (text, sequence) in enumerate(zip(delta.texts, delta.extras.sequences, strict=True)):
            self._texts[i] += text
            self._reasons[i] = sequence.finish_reason or self._reasons[i]
            add_calls(self._calls[i], sequence.tool_calls)
        if not delta.final:
            return delta
        sequences = [
            dataclasses.replace(sequence, schema_errors=await self._violations(i))
            for i, sequence in enumerate(delta.extras.sequences)
        ]
        extras = dataclasses.replace(delta.extras, sequences=tuple(sequences))
        return dataclasses.replace(delta, extras=extras)

    async def _violations(self, i: int) -> list[Violation] | None:
        """Return the violations of a sequence, None if it has nothing to compare with."""
        cut = self._reasons[i] in _CUT
        answers: list[tuple[str, Answer]] = []
        if self._schema and (self._texts[i] or not self._calls[i]):
            answers.append(("", Answer(self._schema, self._texts[i], cut)))
        answers += call_answers(self._calls[i], self._tools, truncated=cut)
        if not answers:
            return None
        found: list[Violation] = []
        for where, answer in answers:
            found += [{**each, "path": where + each["path"]} for each in await self._check(answer)]
        return found


def schema_of(structured_outputs: Any) -> str:
    """Return the JSON schema that ``StructuredOutputsParams`` ask for; empty if there is none."""
    if getattr(structured_outputs, "json", None):
        return schema_text(structured_outputs.json)
    return '{"type": "object"}' if getattr(structured_outputs, "json_object", None) else ""


def tool_schemas(tools: Any) -> Mapping[str, str]:
    """Return the schema of each strict tool's arguments, by name; OpenAI's form of tools."""
    functions = [
        tool.get("function") or {}
        for tool in (tools if isinstance(tools, list) else [])
        if isinstance(tool, dict)
    ]
    return {
        str(function.get("name")): json.dumps(function["parameters"])
        for function in functions
        if isinstance(function, dict) and function.get("strict") and function.get("parameters")
    }


def add_calls(calls: dict[int, dict[str, str]], new: Sequence[Mapping[str, Any]]) -> None:
    """Add tool calls, whole or as a stream's deltas, to those of a sequence."""
    for call in new:
        function = call.get("function") or {}
        kept = calls.setdefault(call.get("index", len(calls)), {"name": "", "arguments": ""})
        kept["name"] += function.get("name") or ""
        kept["arguments"] += function.get("arguments") or ""


def call_answers(
    calls: Mapping[int, Mapping[str, str]], schemas: Mapping[str, str], *, truncated: bool
) -> list[tuple[str, Answer]]:
    """Return the arguments of each strict call, to be checked, and where they stand."""
    return [
        (f"/tool_calls/{place}/arguments", Answer(schemas[name], call["arguments"], truncated))
        for place, call in calls.items()
        if (name := call["name"]) in schemas
    ]

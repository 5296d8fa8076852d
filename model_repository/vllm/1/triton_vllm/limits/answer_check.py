"""Checks finished answers against their schemas, off the event loop, and counts what is wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from triton_vllm.errors import UnavailableError, one_line
from triton_vllm.limits import schema_check
from triton_vllm.limits.sandbox import JobError, Sandbox
from triton_vllm.limits.schema_check import UNCHECKED, Answer, Violation, violation

MAX_WAITING = 256  # answers that are checked, or wait for it, in one front end
_SECONDS = 2.0  # of processor time: a megabyte of JSON takes less
_CUT = ("length", "abort")  # finish reasons


@dataclass(slots=True)
class SequenceAnswer:
    """What one sequence has said so far: its text, and its tool calls by index."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish_reason: str | None = None

    def add(self, text: str, calls: Iterable[Mapping[str, Any]], finish_reason: Any) -> None:
        """Add new text, and tool calls in OpenAI's form: whole ones, or a stream's deltas."""
        self.text += text
        self.finish_reason = finish_reason or self.finish_reason
        for call in calls:
            function = call.get("function") or {}
            kept = self.calls.setdefault(
                call.get("index", len(self.calls)), {"name": "", "arguments": ""}
            )
            for part in kept:
                kept[part] += function.get(part) or ""

    def with_schemas(self, schema: str, tools: Mapping[str, str]) -> dict[str, Answer]:
        """Return what has a schema, by its JSON pointer: the text, and arguments of ``tools``."""
        cut = self.finish_reason in _CUT
        found = {}
        if schema and (self.text or not self.calls):
            found[""] = Answer(schema, self.text, cut)
        for index, call in self.calls.items():
            if call["name"] in tools:
                answer = Answer(tools[call["name"]], call["arguments"], cut)
                found[f"/tool_calls/{index}/arguments"] = answer
        return found


def schema_text(structured_outputs: Any) -> str:
    """Return the JSON schema that structured outputs, vLLM's object, ask for; empty for none."""
    schema = getattr(structured_outputs, "json", None)
    if schema:
        return schema if isinstance(schema, str) else json.dumps(schema)
    return '{"type": "object"}' if getattr(structured_outputs, "json_object", None) else ""


def tool_schemas(tools: Any) -> dict[str, str]:
    """Return the schema of each strict tool's arguments, by name; OpenAI's form of tools."""
    tools = [tool for tool in (tools if isinstance(tools, list) else []) if isinstance(tool, dict)]
    functions = [tool["function"] for tool in tools if isinstance(tool.get("function"), dict)]
    return {
        str(function.get("name")): json.dumps(function["parameters"])
        for function in functions
        if function.get("strict") and function.get("parameters")
    }


class AnswerCheck:
    """Compares answers with their schemas in a process of its own, which starts with the first."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        """Give each answer ``seconds``."""
        self.found: Counter[str] = Counter()  # violations by keyword; the event loop writes it
        self._waiting = 0
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._sandbox = Sandbox(schema_check.prepare, (), seconds, self._stopping)

    async def check_sequence(
        self, sequence: SequenceAnswer, schema: str, tools: Mapping[str, str]
    ) -> list[Violation] | None:
        """Return the violations of a sequence, None if nothing of it has a schema."""
        answers = sequence.with_schemas(schema, tools)
        found: list[Violation] = []
        for place, answer in answers.items():
            found += [{**each, "path": place + each["path"]} for each in await self.check(answer)]
        return found if answers else None

    async def check(self, answer: Answer) -> list[Violation]:
        """Return what is wrong with an answer. Never raises: what cannot be checked is told."""
        self._waiting += 1
        try:
            if self._waiting > MAX_WAITING:
                raise JobError(f"waits for {MAX_WAITING} others")
            loop, run = asyncio.get_running_loop(), self._sandbox.run
            wrong: list[Violation] = await loop.run_in_executor(self._thread, run, answer)
        except (JobError, UnavailableError, RuntimeError) as error:  # the last once it is stopped
            wrong = [violation(UNCHECKED, f"the check {one_line(error)}")]
        finally:
            self._waiting -= 1
        self.found.update(each["keyword"] for each in wrong)
        return wrong

    def stop(self) -> None:
        """End the process permanently."""
        self._stopping.set()
        self._thread.shutdown()
        self._sandbox.end()

"""Checks the answers of the OpenAI port against their schemas; logs and counts what is wrong.

OpenAI's protocol has no field for it, so the client sees nothing. A response is never delayed: its
check begins when its last byte has been sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from triton_vllm.limits.answer_check import AnswerCheck, SequenceAnswer, schema_text, tool_schemas
from triton_vllm.openai_api.exchange import App, Message, Receive, Send

logger = logging.getLogger(__name__)

_PATHS = ("/chat/completions", "/completions", "/responses")
_MARKS = (b"json_schema", b'"strict"', b"structured_outputs")  # else there is nothing to check
_MAX_LISTED = 5


class AnswerLog:
    """An ASGI app around vLLM's, which watches what passes."""

    def __init__(self, app: App, check: AnswerCheck) -> None:
        """``check`` counts what it finds."""
        self._app = app
        self._check = check
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of ASGI 3."""
        if scope["type"] != "http" or not scope["path"].endswith(_PATHS):
            await self._app(scope, receive, send)
            return
        asked, answered = bytearray(), bytearray()
        keep: bool | None = None  # known when the response starts

        async def receive_and_keep() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def send_and_keep(message: Message) -> None:
            nonlocal keep
            if keep is None:
                keep = message.get("status") == 200 and any(mark in asked for mark in _MARKS)
                if not keep:
                    asked.clear()
            if keep:
                answered.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, receive_and_keep, send_and_keep)
        if answered:
            task = asyncio.create_task(self._look(bytes(asked), bytes(answered)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look(self, asked: bytes, answered: bytes) -> None:
        try:
            request = json.loads(asked)
            schema, tools = _schema(request), tool_schemas(request.get("tools"))
            messages = list(_messages(answered))
            choices = _choices(messages)
        except (ValueError, TypeError, KeyError, AttributeError):  # not a request as we know it
            return
        identity = str(next((m["id"] for m in messages if isinstance(m.get("id"), str)), "?"))
        for i, answer in choices.items():
            if found := await self._check.check_sequence(answer, schema, tools):
                # Not the messages: they quote the text.
                places = [f"{each['keyword']} at choice {i} {each['path']}" for each in found]
                more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
                listed = ", ".join(places[:_MAX_LISTED])
                logger.warning(f"{identity}: the answer violates its schema: {listed}{more}")


def _schema(request: Any) -> str:
    """Return the JSON schema that a request asks for; empty if there is none."""
    wanted = request.get("response_format") or (request.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(wanted.get("json_schema", wanted)["schema"])
    given = (request.get("structured_outputs") or {}).get("json")
    return schema_text(SimpleNamespace(json=given))


def _messages(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of a response, or those of its events."""
    if body.lstrip().startswith(b"{"):
        yield json.loads(body)
        return
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def _choices(messages: list[dict[str, Any]]) -> dict[int, SequenceAnswer]:
    """Return what each choice of a response says; that of /v1/responses is choice 0."""
    choices: dict[int, SequenceAnswer] = defaultdict(SequenceAnswer)
    for message in messages:
        for choice in message.get("choices") or []:
            said = choice.get("message") or choice.get("delta") or {}
            text = said.get("content") or choice.get("text") or ""
            calls = said.get("tool_calls") or []
            choices[choice.get("index", 0)].add(text, calls, choice.get("finish_reason"))
        response = message.get("response", message)
        if isinstance(response, dict) and response.get("status") in ("completed", "incomplete"):
            items = [each for each in response.get("output") or [] if each.get("type") == "message"]
            parts = [part for item in items for part in item.get("content") or []]
            choices[0].text = "".join(part.get("text") or "" for part in parts)
    return choices

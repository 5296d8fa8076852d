"""Checks the answers of the OpenAI port against their schemas; logs and counts what is wrong.

OpenAI's protocol has no field for it, so the client sees nothing. A response is never delayed: its
check begins when its last byte has been sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.schema_check import Answer
from triton_vllm.openai_api.exchange import Message, Receive, Send
from triton_vllm.protocol.schema_errors import add_calls, call_answers, tool_schemas

logger = logging.getLogger(__name__)

App = Callable[[Message, Receive, Send], Awaitable[None]]

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
            messages = list(_messages(answered))
            answers = list(answers_of(request, messages))
        except (ValueError, TypeError, KeyError, AttributeError):  # not a request as we know it
            return
        identity = str(next((m["id"] for m in messages if isinstance(m.get("id"), str)), "?"))
        for where, answer in answers:
            if found := await self._check.check(answer):
                # Not the messages: they quote the text.
                places = [f"{each['keyword']} at {where}{each['path']}" for each in found]
                more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
                listed = ", ".join(places[:_MAX_LISTED])
                logger.warning(f"{identity}: the answer violates its schema: {listed}{more}")


def _messages(body: bytes) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of a response, or those of its events."""
    if body.lstrip().startswith(b"{"):
        yield json.loads(body)
        return
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def answers_of(request: Any, messages: list[dict[str, Any]]) -> Iterator[tuple[str, Answer]]:
    """Yield the texts and tool arguments of a response that have a schema, and where they stand."""
    schema = _schema(request)
    tools = tool_schemas(request.get("tools"))
    texts: dict[int, str] = {}
    calls: dict[int, dict[int, dict[str, str]]] = {}
    reasons: dict[int, str] = {}
    for message in messages:
        for choice in message.get("choices") or []:
            i = choice.get("index", 0)
            said = choice.get("message") or choice.get("delta") or {}
            texts[i] = texts.get(i, "") + (said.get("content") or choice.get("text") or "")
            add_calls(calls.setdefault(i, {}), said.get("tool_calls") or [])
            reasons[i] = choice.get("finish_reason") or reasons.get(i, "")
        for text in _output_texts(message.get("response", message)):
            texts[0] = text
    for i, text in texts.items():
        cut = reasons.get(i) == "length"
        if schema and (text or not calls.get(i)):
            yield f"choice {i} ", Answer(schema, text, cut)
        for where, answer in call_answers(calls.get(i, {}), tools, truncated=cut):
            yield f"choice {i} {where}", answer


def _output_texts(response: Any) -> Iterator[str]:
    """Yield the texts of a finished response of /v1/responses."""
    if isinstance(response, dict) and response.get("status") in ("completed", "incomplete"):
        parts = [
            part
            for item in response.get("output") or []
            if item.get("type") == "message"
            for part in item.get("content") or []
        ]
        yield "".join(part.get("text") or "" for part in parts)


def _schema(request: Any) -> str:
    """Return the JSON schema that a request asks for; empty if there is none."""
    wanted = request.get("response_format") or (request.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(
            wanted["json_schema"]["schema"] if "json_schema" in wanted else wanted["schema"]
        )
    given = (request.get("structured_outputs") or {}).get("json")
    return given if isinstance(given, str) else json.dumps(given) if given else ""

"""The texts of the OpenAI port's errors, which name the operator's keys."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from triton_vllm.openai_api.error_texts import ErrorTexts
from triton_vllm.openai_api.exchange import Message


def pass_on(status: int, body: bytes) -> tuple[int, int, bytes]:
    """Return the status, the announced length and the body of what comes through."""
    sent: list[Message] = []
    headers = [(b"Content-Length", str(len(body)).encode()), (b"x", b"y")]

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    async def send(message: Message) -> None:
        sent.append(message)

    def why_wrong(text: str) -> str:
        return text.replace("--tool", '"tool" in the file')

    asyncio.run(ErrorTexts(app, why_wrong)({"type": "http"}, send, send))  # type: ignore[arg-type]
    start, *parts = sent
    length = int(dict(start["headers"])[b"Content-Length"])
    assert b"y" == dict(start["headers"])[b"x"]
    assert [True] * (len(parts) - 1) + [False] == [p.get("more_body", False) for p in parts]
    return start["status"], length, b"".join(part["body"] for part in parts)


def test_an_error_names_keys() -> None:
    """And has the length of its new text."""
    status, length, body = pass_on(
        400, b'{"error": {"message": "needs --tool \\u00e9", "code": 400}}'
    )
    expected = {"error": {"message": 'needs "tool" in the file \u00e9', "code": 400}}
    assert (400, len(body), expected) == (status, length, json.loads(body))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b'{"error": {"message": "--tool"}}'),
        (400, b'{"error": {"message": "a - b"}}'),
        (400, b'{"error": "--tool"}'),
        (404, b"[--tool]"),
        (422, b'{"detail": ["--tool"]}'),
        (401, b""),
    ],
    ids=["no error", "no flag", "no message", "no JSON", "another form", "empty"],
)
def test_everything_else_passes_as_it_is(status: int, body: bytes) -> None:
    """Byte by byte."""
    assert (status, len(body), body) == pass_on(status, body)

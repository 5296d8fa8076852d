"""Has the errors of the OpenAI port name the operator's keys where vLLM's own name its flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from triton_vllm.openai_api.exchange import App, Message, Receive, Send


class ErrorTexts:
    """An ASGI app around vLLM's, which passes on all but the texts of errors as it is."""

    def __init__(self, app: App, why_wrong: Callable[[str], str]) -> None:
        """``why_wrong`` returns a text of vLLM's with keys."""
        self._app = app
        self._why_wrong = why_wrong

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of ASGI 3."""
        held: list[Message] = []  # the start of an error, whose length may change

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                held.append(message)
            elif held:
                held.append(message)
                if not message.get("more_body", False):
                    for each in self._changed(held):
                        await send(each)
            else:
                await send(message)

        await self._app(scope, receive, send_on)

    def _changed(self, held: list[Message]) -> tuple[Message, Message]:
        """Return the start and the one body of a response."""
        start, *parts = held
        body = self._with_keys(b"".join(part.get("body", b"") for part in parts))
        headers = [
            (name, str(len(body)).encode() if name.lower() == b"content-length" else value)
            for name, value in start.get("headers", ())
        ]
        return {**start, "headers": headers}, {"type": "http.response.body", "body": body}

    def _with_keys(self, body: bytes) -> bytes:
        """Return the body of an error; what has no flag, or another form, is not touched."""
        if b"--" not in body:
            return body
        try:
            answer: Any = json.loads(body)
            answer["error"]["message"] = self._why_wrong(answer["error"]["message"])
        except (ValueError, TypeError, KeyError):
            return body
        return json.dumps(answer, ensure_ascii=False).encode()

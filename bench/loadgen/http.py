"""HTTP clients: Triton's generate and generate_stream, and OpenAI's completions.

A keep-alive connection is an ``asyncio.Protocol`` on ``httptools``' parser (C), and a message of a
stream is looked at with two regular expressions instead of a JSON parser: about 10 µs a message.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, cast

import httptools

from loadgen.load import Prompt, Record, RequestFailed, Target

# Inside a JSON string quotes are escaped, so these cannot be found in generated text.
_TEXT = re.compile(rb'"text(?:_output)?":\s*"[^"]')  # a text that is not empty
_TOKENS = re.compile(rb'"(?:num_output_tokens|completion_tokens)":\s*(\d+)')
_ERROR = re.compile(rb'(?:data: |^)\s*\{"error"')
_SHOWN = 300  # bytes of an unexpected answer


def encode(target: Target, prompt: Prompt) -> bytes:
    """Return the whole HTTP request for a prompt."""
    path, body = (
        _triton(target, prompt) if target.protocol == "triton-http" else _openai(target, prompt)
    )
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {target.address}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _triton(target: Target, prompt: Prompt) -> tuple[str, dict[str, Any]]:
    sampling = {"max_tokens": prompt.output_tokens, **target.sampling}
    body = {
        "text_input": prompt.text,
        "stream": target.stream,
        "exclude_input_in_output": True,
        "sampling_parameters": json.dumps(sampling),
    }
    if target.count_tokens:
        body["return_num_output_tokens"] = True
    verb = "generate_stream" if target.stream else "generate"
    return f"/v2/models/{target.model}/{verb}", body


def _openai(target: Target, prompt: Prompt) -> tuple[str, dict[str, Any]]:
    body = {
        "model": target.model,
        "prompt": prompt.text,
        "stream": target.stream,
        "max_tokens": prompt.output_tokens,
        **target.sampling,
    }
    if target.stream and target.count_tokens:
        body["stream_options"] = {"include_usage": True}
    return "/v1/completions", body


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection, with one request under way at a time."""

    @classmethod
    async def open(cls, target: Target) -> HttpConnection:
        """Connect."""
        host, port = target.address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(target.stream), host, int(port))
        return connection

    def __init__(self, stream: bool) -> None:
        self._stream = stream
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, record: Record) -> None:
        """Send an encoded request and note its answer. Raises RequestFailed."""
        assert self._transport is not None, "open() connects"
        self._record = record
        self._rest = b""
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def close(self) -> None:
        """Close the connection, which cancels a request under way."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but in name

    def data_received(self, data: bytes) -> None:
        """Take what came: all its messages came now."""
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request under way."""
        self._end(f"the server closed the connection{f': {error}' if error else ''}")

    # httptools

    def on_body(self, body: bytes) -> None:
        """Note the complete messages of a stream; keep the body of another answer."""
        if not self._stream or self._parser.get_status_code() != 200:
            self._body.append(body)
            return
        events = (self._rest + body).split(b"\n\n")
        self._rest = events.pop()
        for event in events:
            self._note(event)

    def on_message_complete(self) -> None:
        """Note the answer that is no stream, and its errors; end the request."""
        body = b"".join(self._body)
        if self._parser.get_status_code() != 200:
            shown = body[:_SHOWN].decode(errors="replace")
            self._end(f"HTTP status {self._parser.get_status_code()}: {shown}")
            return
        if body:
            self._note(body)
        self._end("")

    def _note(self, message: bytes) -> None:
        if _TEXT.search(message):
            self._record.times.append(self._now)
        elif _ERROR.match(message):
            self._end(message[:_SHOWN].decode(errors="replace"))
        if tokens := _TOKENS.search(message):
            self._record.tokens += int(tokens[1])

    def _end(self, error: str) -> None:
        if self._answered is None or self._answered.done():
            return
        if error:
            self._answered.set_exception(RequestFailed(error))
        else:
            self._answered.set_result(None)

"""Stands before vLLM's OpenAI-compatible app: who may come in, when, and how it counts.

An ASGI middleware, and the only thing in a request's way that ``vllm serve`` has not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from triton_vllm.errors import EngineDownError, ServingError, UnavailableError, one_line
from triton_vllm.front_end_metrics import Traffic

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# For load balancers and monitoring. vLLM guards /v1, /v2 and /inference only, while /invocations,
# /pooling, /tokenize and others do the same work: here every other path wants the key.
OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics"})

_TYPES = {401: "AuthenticationError", 503: "ServiceUnavailableError"}  # vLLM's names
_TRY_LATER = (429, 503)


class Gate:
    """Lets requests through to ``app`` while the engine serves, and counts those that generate.

    ``check`` raises what keeps the engine from serving; ``admit`` does so too, and its context
    holds the place of one request that generates. ``traffic`` is written by the event loop only.
    """

    def __init__(
        self,
        check: Callable[[], None],
        admit: Callable[[], AbstractContextManager[None]],
        api_keys: Sequence[str],
    ) -> None:
        self.app: App | None = None
        self.traffic = Traffic()
        self._check = check
        self._admit = admit
        self._keys = [_digest(key.encode()) for key in api_keys]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of ASGI 3."""
        exchange = _Exchange(scope, receive, send)
        generates = scope["type"] == "websocket" or scope["method"] == "POST"
        try:
            if not self._may_pass(scope):
                await exchange.refuse(401, "a valid API key is needed: Authorization: Bearer KEY")
            elif generates:
                with self._admit():
                    await self._living()(scope, exchange.receive, exchange.send)
                self._check()  # vLLM ends the streams of an engine that died like any other
            else:
                self._check()
                await self._living()(scope, receive, send)
        except ServingError as error:
            await exchange.refuse(503, one_line(error))
            exchange.outcome = error.outcome
        except asyncio.CancelledError:
            # The engine died, or the model is unloaded and the time to drain has passed.
            await exchange.refuse(503, "the request was ended: the model is going down")
            exchange.outcome = EngineDownError.outcome
        finally:
            if generates:
                self.traffic.outcomes[exchange.outcome or exchange.usual_outcome()] += 1

    def _living(self) -> App:
        if self.app is None:
            raise UnavailableError("the model is being loaded")
        return self.app

    def _may_pass(self, scope: Message) -> bool:
        if not self._keys or scope.get("method") == "OPTIONS" or scope["path"] in OPEN_PATHS:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = _digest(key.strip())
        # All of them, in the same time whichever it is.
        matches = [secrets.compare_digest(digest, known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


class _Exchange:
    """One request and its response, as far as the gate has seen them pass."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.outcome = ""
        self._receive = receive
        self._send = send
        self._is_websocket = scope["type"] == "websocket"
        self._status = 0
        self._is_event_stream = False
        self._complete = False
        self._client_left = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left |= not self._complete
        elif message["type"] == "websocket.disconnect":
            self._complete = True
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self._status = message["status"]
            self._is_event_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        elif message["type"] == "websocket.close":
            self._complete = True
        return self._send(message)

    async def refuse(self, status: int, message: str) -> None:
        """Answer with an error in OpenAI's form, or end with it a stream that has begun."""
        error = {"message": message, "type": _TYPES[status], "param": None, "code": status}
        body = json.dumps({"error": error}).encode()
        if self._complete:
            return
        if self._is_websocket:
            await self.send({"type": "websocket.close", "code": 1013, "reason": message[:100]})
        elif not self._status:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        elif self._is_event_stream:
            await self.send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})

    def usual_outcome(self) -> str:
        """Return what a request counts as that nothing extraordinary has ended."""
        if self._client_left:
            return "cancelled"
        if self._status in _TRY_LATER:
            return "refused"
        if self._status >= 500 or not (self._status or self._is_websocket):
            return "engine_error"
        return "client_error" if self._status >= 400 else "ok"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

"""One request and its response as they pass the middleware before vLLM's app."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from triton_vllm.errors import RequestTimeoutError, ServingError

Message = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# vLLM's names; it has no time limits.
_TYPES = {401: "AuthenticationError", 404: "NotFoundError"}
_TYPES |= {503: "ServiceUnavailableError", 504: "TimeoutError"}
_TRY_LATER = (429, 503)
_GRACE = 1.0  # seconds that the app has to see that its client has gone


class Exchange:
    """One request and its response, as far as the middleware has seen them pass."""

    def __init__(
        self, scope: Message, receive: Receive, send: Send, cors: Callable[[App], App]
    ) -> None:
        self.outcome = ""  # if it is not that of the status
        self.is_websocket = scope["type"] == "websocket"
        self._scope = scope
        self._receive = receive
        self._send = send
        self._cors = cors  # lets a browser's page read an answer of the middleware's
        self._stopped = asyncio.get_running_loop().create_future()
        self._task = asyncio.current_task()
        self._grace: asyncio.TimerHandle | None = None
        self._status = 0
        self._is_event_stream = False
        self._complete = False
        self._client_left = False

    def stop(self) -> bool:
        """Tell the app that its client left, so that it aborts; return False if it has answered.

        So the app aborts in the engine what it has begun. One that does not notice is cancelled.
        """
        if self._complete or self._stopped.done():
            return False
        self._stopped.set_result(None)
        assert self._task is not None, "ASGI is served by a task"
        self._grace = asyncio.get_running_loop().call_later(_GRACE, self._task.cancel)
        return True

    def app_returned(self) -> None:
        """Stop the timer that would cancel the app: it has returned."""
        if self._grace is not None:
            self._grace.cancel()

    async def receive(self) -> Message:
        """Return the client's next message to the app; that it has left, once stopped."""
        receiving = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((receiving, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.done():
                return {"type": "websocket.disconnect" if self.is_websocket else "http.disconnect"}
            message = receiving.result()
        finally:
            receiving.cancel()
        if message["type"] == "http.disconnect":
            self._client_left |= not self._complete
        elif message["type"] == "websocket.disconnect":
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends, as long as its client is there for it."""
        if not self._stopped.done():
            await self._pass_on(message)

    def _pass_on(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._is_event_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        elif message["type"] in ("http.response.body", "websocket.close"):
            self._complete = not message.get("more_body", False)
        return self._send(message)

    async def refuse_with(self, error: ServingError) -> None:
        """Answer with ``error``, whose outcome the request then has."""
        status = 504 if isinstance(error, RequestTimeoutError) else 503
        await self.refuse(status, str(error))
        self.outcome = error.outcome

    async def refuse(self, status: int, message: str) -> None:
        """Answer with an error in OpenAI's form, or end a stream that has begun with it."""
        if self._complete:
            return
        error = {"message": message, "type": _TYPES[status], "param": None, "code": status}
        body = json.dumps({"error": error}).encode()
        if self.is_websocket:
            await self._pass_on({"type": "websocket.close", "code": 1013, "reason": message[:100]})
        elif not self._status:
            await self._cors(_answer(status, body))(self._scope, self._receive, self._pass_on)
        elif self._is_event_stream:
            await self._pass_on({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})

    def usual_outcome(self) -> str:
        """Return what a request counts as that nothing extraordinary has ended."""
        if self._client_left:
            return "cancelled"
        if self._status in _TRY_LATER:
            return "refused"
        if self._status >= 500 or not (self._status or self.is_websocket):
            return "engine_error"
        return "client_error" if self._status >= 400 else "ok"


def _answer(status: int, body: bytes) -> App:
    """Return an app that answers with some JSON."""
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app

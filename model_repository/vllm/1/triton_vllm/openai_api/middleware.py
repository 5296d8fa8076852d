"""Stands before vLLM's OpenAI-compatible app: who may come in, when, and how it counts.

An ASGI middleware, and the only thing in a request's way that ``vllm serve`` has not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from triton_vllm.counters import Traffic
from triton_vllm.errors import DeadlineError, EngineDownError, ServingError, UnavailableError
from triton_vllm.limits.admission import Place
from triton_vllm.openai_api.exchange import Exchange, Message, Receive, Send

App = Callable[[Message, Receive, Send], Awaitable[None]]

# For load balancers and monitoring. vLLM guards /v1, /v2 and /inference only, while /invocations,
# /pooling, /tokenize and others do the same work: here every other path wants the key.
OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics"})

# vLLM has these for every model, and without a variable of the operator's. They resize an engine
# whose data-parallel ranks Ray runs, which is none of ours.
ADMIN_PATHS = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep"})


class Door(Protocol):
    """What the gate asks: the engine. Each raises the ServingError that keeps requests out."""

    def check_up(self) -> None:
        """Raise while the engine does not serve."""

    def check_open(self) -> None:
        """Raise then, and when the model is going; not for want of room."""

    def admit_http(self) -> AbstractContextManager[Place]:
        """Return the context that holds the place of one request that generates."""


class Gate:
    """Lets requests through the ``door`` to ``app``, and counts those that generate.

    These have ``time_limit`` seconds (0: no limit). ``traffic`` is written by the event loop only.
    """

    def __init__(
        self,
        door: Door,
        api_keys: Sequence[str],
        time_limit: float = 0.0,
    ) -> None:
        self.app: App | None = None
        self.traffic = Traffic()
        self._door = door
        self._keys = [_digest(key.encode()) for key in api_keys]
        self._time_limit = time_limit
        self._live: set[Exchange] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of ASGI 3."""
        exchange = Exchange(scope, receive, send)
        generates = scope["type"] == "websocket" or scope["method"] == "POST"
        try:
            if not self._may_pass(scope):
                await exchange.refuse(401, "a valid API key is needed: Authorization: Bearer KEY")
            elif scope["path"] in ADMIN_PATHS:
                await exchange.refuse(404, f"{scope['path']}: not served")
            elif generates:
                await self._generate(scope, exchange)
            else:
                self._door.check_open()
                await self._living()(scope, receive, send)
        except ServingError as error:
            await exchange.refuse_with(error)
        except asyncio.CancelledError:
            # The engine died, or the model is unloaded and the time to drain has passed.
            going_down = EngineDownError("the request was ended: the model is going down")
            await exchange.refuse_with(exchange.ended or going_down)
        finally:
            if generates:
                self.traffic.outcomes[exchange.outcome or exchange.usual_outcome()] += 1

    async def _generate(self, scope: Message, exchange: Exchange) -> None:
        """Have the app answer a request that costs something, or say what has ended it."""
        with self._door.admit_http() as place, self._held(exchange):
            place.turned_away = exchange.end
            try:
                await self._living()(scope, exchange.receive, exchange.send)
            except Exception:
                if exchange.ended is None:
                    raise
        if exchange.ended is not None:
            await exchange.refuse_with(exchange.ended)
        else:
            self._door.check_up()  # vLLM ends the streams of an engine that died like any other

    @contextlib.contextmanager
    def _held(self, exchange: Exchange) -> Iterator[None]:
        """Keep an exchange where ``end_all`` finds it, and within its time limit."""
        self._live.add(exchange)
        if self._time_limit and not exchange.is_websocket:  # which is no request, but many
            late = DeadlineError(f"not done within {self._time_limit:g} s, its time limit")
            exchange.call_later(self._time_limit, lambda: exchange.end(late))
        try:
            yield
        finally:
            self._live.discard(exchange)
            exchange.stop_timers()

    def end_all(self, why: ServingError) -> int:
        """Answer all requests under way with ``why``; return how many there were."""
        live = list(self._live)
        for exchange in live:
            exchange.end(why)
        return len(live)

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


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

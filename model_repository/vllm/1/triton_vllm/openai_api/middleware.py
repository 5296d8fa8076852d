"""Decides which HTTP requests reach vLLM's OpenAI-compatible app, and counts them.

An ASGI middleware, and the only part of a request's way that ``vllm serve`` does not have.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence

from triton_vllm.counters import Traffic
from triton_vllm.errors import EngineDownError, ServingError, UnavailableError
from triton_vllm.limits.admission import OPENAI, Admission
from triton_vllm.openai_api.exchange import App, Exchange, Message, Receive, Send

# For load balancers and monitoring. vLLM guards /v1, /v2 and /inference only, while /invocations,
# /pooling, /tokenize and others do the same work: here every other path requires the key.
OPEN_PATHS = frozenset({"/health", "/ping", "/version", "/metrics"})

# vLLM serves these for every model, and no variable turns them off. They resize an engine whose
# data-parallel ranks Ray runs, which this model does not support.
ADMIN_PATHS = frozenset({"/scale_elastic_ep", "/is_scaling_elastic_ep"})


class RequestMiddleware:
    """Passes requests on to ``app``, once there is one; counts those that generate."""

    def __init__(
        self,
        admission: Admission,
        api_keys: Sequence[str],
        timeout: float = 0.0,
        root_path: str = "",
        cors: Callable[[App], App] = lambda app: app,
    ) -> None:
        """Give a request that generates ``timeout`` seconds (0: no limit).

        ``root_path`` is the prefix that a proxy leaves in the path; ``cors`` adds vLLM's CORS
        headers to an answer of this middleware.
        """
        self.app: App | None = None
        self.traffic = Traffic()
        self._admission = admission
        self._keys = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._timeout = timeout
        self._root_path = root_path
        self._cors = cors

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of ASGI 3."""
        exchange = Exchange(scope, receive, send, self._cors)
        generates = scope["type"] == "websocket" or scope["method"] == "POST"
        path = route_path(scope["path"], self._root_path)
        try:
            if not self._is_authorized(scope, path):
                await exchange.refuse(401, "a valid API key is needed: Authorization: Bearer KEY")
            elif path in ADMIN_PATHS:
                await exchange.refuse(404, f"{path}: not served")
            elif generates:
                await self._generate(scope, exchange)
            else:
                self._admission.check_open()
                await self._loaded_app()(scope, receive, send)
        except ServingError as error:
            await exchange.refuse_with(error)
        except asyncio.CancelledError:  # by uvicorn, when the time to drain has passed
            why = EngineDownError("the request was ended: the model is going down")
            await exchange.refuse_with(why)
        finally:
            if generates:
                self.traffic.outcomes[exchange.outcome or exchange.usual_outcome()] += 1

    async def _generate(self, scope: Message, exchange: Exchange) -> None:
        """Have the app answer a request that uses the engine. Raises what has ended it."""
        # A WebSocket has no timeout: it is not one request, but many.
        timeout = 0.0 if exchange.is_websocket else self._timeout
        with self._admission.admit(OPENAI, timeout, stop=exchange.stop):
            try:
                await self._loaded_app()(scope, exchange.receive, exchange.send)
            finally:
                exchange.app_returned()
        # vLLM ends the streams of an engine that died like any other.
        self._admission.check_up()

    def _loaded_app(self) -> App:
        if self.app is None:
            raise UnavailableError("the model is being loaded")
        return self.app

    def _is_authorized(self, scope: Message, path: str) -> bool:
        if not self._keys or scope.get("method") == "OPTIONS" or path in OPEN_PATHS:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        # Compare with all keys, so that the time does not tell which one matches.
        matches = [secrets.compare_digest(digest, known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


def route_path(path: str, root_path: str) -> str:
    """Return the path that vLLM's router matches, which is Starlette's ``get_route_path``.

    The prefix is optional there: it is removed where it is followed by a slash or by nothing.
    """
    rest = path.removeprefix(root_path)
    return rest if rest.startswith("/") or not rest else path

"""Who may come in, when, and how it counts: the middleware before vLLM's app."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from triton_vllm.errors import EngineDownError, UnavailableError
from triton_vllm.limits.admission import Admission
from triton_vllm.openai_api.exchange import App, Message, Receive, Send
from triton_vllm.openai_api.middleware import RequestMiddleware, route_path
from triton_vllm.topology.load_balancing import NoLoadBalancer

JSON_TYPE = [(b"content-type", b"application/json")]
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


def answering(status: int, headers: Sequence[Any] = JSON_TYPE) -> Any:
    """Return an app that answers everything alike."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})
        assert "http.disconnect" == (await receive())["type"]  # as Starlette looks for it

    return app


class Client:
    """One HTTP exchange with a middleware, as uvicorn would carry it."""

    prefix = ""  # of every path

    def __init__(
        self,
        path: str = "/v1/completions",
        method: str = "POST",
        key: str = "",
        kind: str = "http",
    ) -> None:
        headers = [(b"authorization", key.encode())] if key else []
        self.scope: Message = {
            "type": kind,
            "method": method,
            "path": self.prefix + path,
            "headers": headers,
        }
        if kind == "websocket":
            del self.scope["method"]
        self.sent: list[Message] = []
        self.incoming = [{"type": "http.request"}]
        self.leaves = asyncio.Event()

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop()
        if not any(message.get("more_body") is False for message in self.sent[-1:]):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> Any:
        return json.loads(b"".join(m["body"] for m in self.sent[1:]))


def make(
    app: Any,
    keys: Sequence[str] = (),
    timeout: float = 0.0,
    *,
    cors: Callable[[App], App] = lambda app: app,
    max_requests: int = 0,
) -> tuple[RequestMiddleware, Admission]:
    admission = Admission(max_requests, 0, lambda: 0, NoLoadBalancer())
    middleware = RequestMiddleware(admission, keys, timeout, Client.prefix, cors)
    middleware.app = app
    return middleware, admission


@pytest.fixture(autouse=True, params=["", "/proxy"], ids=["no prefix", "root_path"])
def prefix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a proxy that leaves its prefix in the path."""
    monkeypatch.setattr(Client, "prefix", request.param)
    return str(request.param)


def ask(middleware: RequestMiddleware, client: Client) -> Client:
    asyncio.run(asyncio.wait_for(middleware(client.scope, client.receive, client.send), 30))
    return client


@pytest.mark.parametrize("key", ["Bearer one", "bearer two", "Bearer  two"])
def test_one_of_the_keys_is_enough(key: str) -> None:
    """The scheme's case does not matter, as in RFC 9110."""
    middleware, _ = make(answering(200), ["one", "two"])
    assert 200 == ask(middleware, Client(key=key)).status


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer three", "Bearer onetwo", "Basic one", "one"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("POST", "/invocations"), ("GET", "/v1/models")],
)
def test_without_a_key_nothing_is_done(method: str, path: str, key: str) -> None:
    """Any path that does or tells something, even where vLLM itself would not ask."""
    middleware, _ = make(answering(200), ["one", "two"])
    client = ask(middleware, Client(path, method, key))
    assert 401 == client.status
    assert ("AuthenticationError", 401) == (
        client.body["error"]["type"],
        client.body["error"]["code"],
    )


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/health"), ("GET", "/metrics"), ("OPTIONS", "/v1/completions")]
)
def test_what_needs_no_key(method: str, path: str) -> None:
    """Load balancers, monitoring and a browser's preflight."""
    middleware, _ = make(answering(200), ["one"])
    assert 200 == ask(middleware, Client(path, method)).status


def test_what_administers_is_not_there() -> None:
    """Nor does vLLM's app hear of it."""
    middleware, _ = make(answering(200), ["one"])
    client = ask(middleware, Client(path="/scale_elastic_ep", key="Bearer one"))
    assert (404, "NotFoundError") == (client.status, client.body["error"]["type"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/v1/completions")])
def test_while_the_engine_is_down_the_answer_is_503(method: str, path: str) -> None:
    """In OpenAI's form, and at once."""
    middleware, admission = make(answering(200))
    admission.down = EngineDownError("the engine died and is being restarted")
    client = ask(middleware, Client(path, method))
    expected = {
        "message": "the engine died and is being restarted",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
    }
    assert (503, {"error": expected}) == (client.status, client.body)


def test_while_the_model_is_going_nobody_is_sent_there() -> None:
    """A load balancer gets the health of the server."""
    middleware, admission = make(answering(200))
    admission.close(UnavailableError("the model is being unloaded"))
    assert 503 == ask(middleware, Client("/health", "GET")).status


def test_what_was_answered_before_the_model_went_counts_as_good() -> None:
    """Its answer is complete."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        admission.close(UnavailableError("the model is being unloaded"))
        await answering(200)(scope, receive, send)

    middleware, admission = make(app)
    ask(middleware, Client())
    assert Counter(ok=1) == middleware.traffic.outcomes


def test_before_there_is_an_app_the_answer_is_503() -> None:
    """A request that comes too early is no accident."""
    middleware, _ = make(None)
    assert 503 == ask(middleware, Client()).status


def test_an_engine_that_is_full_refuses() -> None:
    """A request that generates counts against the limit; one that only asks does not."""

    async def full(scope: Message, receive: Receive, send: Send) -> None:
        middleware.app = answering(200)
        for client in second, asks:
            await middleware(client.scope, client.receive, client.send)
        await answering(200)(scope, receive, send)

    second, asks = Client(), Client("/v1/models", "GET")
    middleware, _ = make(answering(200), max_requests=1)
    middleware.app = full
    ask(middleware, Client())
    assert (503, 200) == (second.status, asks.status)
    assert Counter(refused=1, ok=1) == middleware.traffic.outcomes


def test_a_place_is_held_for_as_long_as_the_request_lasts() -> None:
    """It is given back whatever happens."""
    seen: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(admission.count())
        await answering(200)(scope, receive, send)

    middleware, admission = make(app)
    ask(middleware, Client())
    assert ([1], 0) == (seen, admission.count())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, "ok"),
        (400, "client_error"),
        (404, "client_error"),
        (429, "refused"),
        (503, "refused"),
        (500, "engine_error"),
    ],
)
def test_a_request_counts_by_its_status(status: int, expected: str) -> None:
    """The same outcomes as Triton's requests have."""
    middleware, _ = make(answering(status))
    ask(middleware, Client())
    ask(middleware, Client("/v1/models", "GET"))  # does not generate
    assert Counter({expected: 1}) == middleware.traffic.outcomes


def test_an_app_that_fails_counts_as_the_engines_error() -> None:
    """Even when no response has begun; uvicorn answers 500 then, and logs the reason."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise RuntimeError("a mistake of somebody's")

    middleware, _ = make(app)
    with pytest.raises(RuntimeError):
        ask(middleware, Client())
    assert Counter(engine_error=1) == middleware.traffic.outcomes


def test_a_wrong_key_counts_as_the_clients_mistake() -> None:
    """So a dashboard shows that somebody knocks."""
    middleware, _ = make(answering(200), ["one"])
    ask(middleware, Client())
    assert Counter(client_error=1) == middleware.traffic.outcomes


def test_a_client_that_leaves_counts_as_cancelled() -> None:
    """Whether or not a response has begun."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        assert "http.disconnect" == (await receive())["type"]

    middleware, _ = make(app)
    ask(middleware, Client())
    assert Counter(cancelled=1) == middleware.traffic.outcomes


def test_a_stream_of_an_engine_that_died_counts_as_its_error() -> None:
    """Such a stream is ended by vLLM with an error and HTTP's 200."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        admission.down = EngineDownError("the engine died")
        await answering(200, EVENTS)(scope, receive, send)

    middleware, admission = make(app)
    client = ask(middleware, Client())
    assert Counter(engine_error=1) == middleware.traffic.outcomes
    assert 2 == len(client.sent)


Steps = Callable[[Send], Awaitable[None]]


async def _nothing(send: Send) -> None:
    """Send nothing."""


async def _half_a_stream(send: Send) -> None:
    """Send the beginning of a stream."""
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})


@pytest.mark.parametrize(
    ("steps", "status", "last"),
    [(_nothing, 503, b'{"error": '), (_half_a_stream, 200, b'data: {"error": ')],
    ids=["not begun", "streaming"],
)
def test_a_request_that_is_ended_gets_to_know(steps: Steps, status: int, last: bytes) -> None:
    """At the end of the model, or of the admission, nobody is left waiting or in doubt."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await steps(send)
        await asyncio.Event().wait()

    middleware, _ = make(app)
    client = Client()

    async def end() -> None:
        task = asyncio.create_task(middleware(client.scope, client.receive, client.send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait_for(task, 30)

    asyncio.run(end())
    assert status == client.status
    assert client.sent[-1]["body"].startswith(last)
    assert not client.sent[-1].get("more_body")
    assert Counter(engine_error=1) == middleware.traffic.outcomes


def test_a_websocket_without_a_key_is_closed() -> None:
    """Realtime connections pass the same middleware."""
    middleware, _ = make(answering(200), ["one"])
    client = ask(middleware, Client("/v1/realtime", kind="websocket"))
    assert ["websocket.close"] == [message["type"] for message in client.sent]


class Patient(Client):
    """A client that stays until it has its answer."""

    async def receive(self) -> Message:
        if self.incoming:
            return self.incoming.pop()
        await asyncio.Event().wait()
        raise AssertionError


def endless(steps: Steps, seen: list[str]) -> Any:
    """Return an app that answers for ever, and notes how it hears of its end, as vLLM's does."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await steps(send)
        seen.append((await receive())["type"])
        await answering(200)(scope, receive, send)  # as FastAPI does when a handler was cancelled

    return app


@pytest.mark.parametrize(
    ("steps", "status", "last"),
    [(_nothing, 504, b'{"error": '), (_half_a_stream, 200, b'data: {"error": ')],
    ids=["not begun", "streaming"],
)
def test_a_time_limit_ends_a_request(steps: Steps, status: int, last: bytes) -> None:
    """To the app the client has gone, so that it aborts; the client is told the limit."""
    seen: list[str] = []
    middleware, admission = make(endless(steps, seen), timeout=0.05)
    client = Patient()
    ask(middleware, client)
    assert (status, ["http.disconnect"]) == (client.status, seen)
    body = client.sent[-1]["body"]
    assert body.startswith(last)
    assert b"request timed out after 0.05 s" in body
    assert not client.sent[-1].get("more_body")
    assert (Counter(timeout=1), 0) == (middleware.traffic.outcomes, admission.count())


def test_in_time_nothing_is_ended() -> None:
    """A request that was answered in time is not ended afterwards."""
    middleware, _ = make(answering(200), timeout=0.5)

    async def main() -> None:
        client = Client()
        await middleware(client.scope, client.receive, client.send)
        await asyncio.sleep(0.6)
        assert 200 == client.status

    asyncio.run(main())
    assert Counter(ok=1) == middleware.traffic.outcomes


def test_an_app_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every route looks for its client; after a moment it is ended all the same."""
    monkeypatch.setattr("triton_vllm.openai_api.exchange._GRACE", 0.05)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    middleware, _ = make(app, timeout=0.05)
    assert 504 == ask(middleware, Patient()).status
    assert Counter(timeout=1) == middleware.traffic.outcomes


def test_a_websocket_has_no_time_limit() -> None:
    """A connection stays for many requests."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        await send({"type": "websocket.accept"})

    middleware, _ = make(app, timeout=0.02)
    client = ask(middleware, Patient("/v1/realtime", kind="websocket"))
    assert ["websocket.accept"] == [message["type"] for message in client.sent]


def test_all_can_be_ended_with_a_reason() -> None:
    """Those under way are told; a request that comes later is served."""
    seen: list[str] = []
    middleware, admission = make(endless(_half_a_stream, seen))
    clients = [Patient(), Patient()]

    async def main() -> int:
        tasks = [asyncio.create_task(middleware(c.scope, c.receive, c.send)) for c in clients]
        await asyncio.sleep(0.05)
        ended = admission.end_all(UnavailableError("the grace is over"))
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        return ended

    assert 2 == asyncio.run(main())
    assert all(b"the grace is over" in client.sent[-1]["body"] for client in clients)
    assert Counter(refused=2) == middleware.traffic.outcomes
    middleware.app = answering(200)
    assert 200 == ask(middleware, Client()).status


def test_a_prompt_that_may_not_wait_is_503() -> None:
    """The app knows no such error and answers 500, which the client does not get to see."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        admission.end_current(UnavailableError("9 prompt tokens wait"))
        await answering(500)(scope, receive, send)

    middleware, admission = make(app)
    client = ask(middleware, Patient())
    assert (503, "9 prompt tokens wait") == (client.status, client.body["error"]["message"])
    assert Counter(refused=1) == middleware.traffic.outcomes


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/api/v1/models", "/api", "/v1/models"),
        ("/v1/models", "/api", "/v1/models"),
        ("/apis/health", "/api", "/apis/health"),
        ("/api/health", "/api/", "/api/health"),
        ("/api", "/api", ""),
    ],
)
def test_the_path_that_counts_is_the_routers(path: str, root_path: str, expected: str) -> None:
    """The prefix is optional; a longer word is no prefix."""
    assert expected == route_path(path, root_path)


def test_a_path_that_only_resembles_an_open_one_requires_the_key() -> None:
    """What the router does not match is not open."""
    middleware, _ = make(answering(200), ["one"])
    for path in ("/health/", "//health", "/v1/health", "/healthy"):
        assert 401 == ask(middleware, Client(path, "GET")).status


def marking(app: App) -> App:
    """Add a header to what ``app`` answers, in the place of vLLM's CORS middleware."""

    async def marked(scope: Message, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"access-control-allow-origin", b"*"))
            await send(message)

        await app(scope, receive, add)

    return marked


@pytest.mark.parametrize(("down", "expected"), [(False, 401), (True, 503)])
def test_a_browser_may_read_why_it_was_refused(down: bool, expected: int) -> None:
    """The middleware's own answers have the CORS headers that vLLM's have."""
    middleware, admission = make(answering(200), [] if down else ["one"], cors=marking)
    if down:
        admission.down = EngineDownError("the engine died")
    client = ask(middleware, Client())
    assert expected == client.status
    assert (b"access-control-allow-origin", b"*") in client.sent[0]["headers"]


def test_what_has_been_answered_is_not_ended() -> None:
    """An app may go on for a while after its last byte."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await answering(200)(scope, receive, send)
        admission.end_all(UnavailableError("drained"))

    middleware, admission = make(app)
    ask(middleware, Client())
    assert Counter(ok=1) == middleware.traffic.outcomes


def test_the_engines_death_ends_open_streams_with_an_error_event() -> None:
    """At once: the app may never notice."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await _half_a_stream(send)
        await receive()
        await asyncio.Event().wait()

    middleware, admission = make(app)
    client = Patient()

    async def main() -> None:
        task = asyncio.create_task(middleware(client.scope, client.receive, client.send))
        await asyncio.sleep(0.05)
        admission.end_all(EngineDownError("the engine died"))
        await asyncio.wait_for(task, 3)

    asyncio.run(main())
    assert b'data: {"error": {"message": "the engine died"' in client.sent[-1]["body"]
    assert not client.sent[-1].get("more_body")
    assert Counter(engine_error=1) == middleware.traffic.outcomes

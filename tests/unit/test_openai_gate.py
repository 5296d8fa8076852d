"""Who may come in, when, and how it counts: the middleware before vLLM's app."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from triton_vllm.errors import EngineDownError, ServingError, UnavailableError
from triton_vllm.limits.admission import Place
from triton_vllm.openai_api.exchange import Message, Receive, Send
from triton_vllm.openai_api.middleware import Gate

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


class Engine:
    """What the gate asks: is it up, is there room."""

    def __init__(self) -> None:
        self.down: ServingError | None = None
        self.closed: ServingError | None = None
        self.full: ServingError | None = None
        self.admitted = 0
        self.place = Place()

    def check_up(self) -> None:
        if self.down:
            raise self.down

    def check_open(self) -> None:
        self.check_up()
        if self.closed:
            raise self.closed

    @contextlib.contextmanager
    def admit_http(self) -> Iterator[Place]:
        self.check_open()
        if self.full:
            raise self.full
        self.admitted += 1
        yield self.place
        self.admitted -= 1


class Client:
    """One HTTP exchange with a gate, as uvicorn would carry it."""

    def __init__(
        self,
        path: str = "/v1/completions",
        method: str = "POST",
        key: str = "",
        kind: str = "http",
    ) -> None:
        headers = [(b"authorization", key.encode())] if key else []
        self.scope: Message = {"type": kind, "method": method, "path": path, "headers": headers}
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


def make(app: Any, keys: Sequence[str] = (), time_limit: float = 0.0) -> tuple[Gate, Engine]:
    engine = Engine()
    gate = Gate(engine, keys, time_limit)
    gate.app = app
    return gate, engine


def ask(gate: Gate, client: Client) -> Client:
    asyncio.run(asyncio.wait_for(gate(client.scope, client.receive, client.send), 30))
    return client


@pytest.mark.parametrize("key", ["Bearer one", "bearer two", "Bearer  two"])
def test_one_of_the_keys_is_enough(key: str) -> None:
    """The scheme's case does not matter, as in RFC 9110."""
    gate, _ = make(answering(200), ["one", "two"])
    assert 200 == ask(gate, Client(key=key)).status


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer three", "Bearer onetwo", "Basic one", "one"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("POST", "/invocations"), ("GET", "/v1/models")],
)
def test_without_a_key_nothing_is_done(method: str, path: str, key: str) -> None:
    """Any path that does or tells something, even where vLLM itself would not ask."""
    gate, _ = make(answering(200), ["one", "two"])
    client = ask(gate, Client(path, method, key))
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
    gate, _ = make(answering(200), ["one"])
    assert 200 == ask(gate, Client(path, method)).status


def test_what_administers_is_not_there() -> None:
    """Nor does vLLM's app hear of it."""
    gate, _ = make(answering(200), ["one"])
    client = ask(gate, Client(path="/scale_elastic_ep", key="Bearer one"))
    assert (404, "NotFoundError") == (client.status, client.body["error"]["type"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/v1/completions")])
def test_while_the_engine_is_down_the_answer_is_503(method: str, path: str) -> None:
    """In OpenAI's form, and at once."""
    gate, engine = make(answering(200))
    engine.down = EngineDownError("the engine died and is being restarted")
    client = ask(gate, Client(path, method))
    expected = {
        "message": "the engine died and is being restarted",
        "type": "ServiceUnavailableError",
        "param": None,
        "code": 503,
    }
    assert (503, {"error": expected}) == (client.status, client.body)


def test_while_the_model_is_going_nobody_is_sent_there() -> None:
    """A load balancer that asks for its health hears it."""
    gate, engine = make(answering(200))
    engine.closed = UnavailableError("the model is being unloaded")
    assert 503 == ask(gate, Client("/health", "GET")).status


def test_what_was_answered_before_the_model_went_counts_as_good() -> None:
    """Its answer is complete."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        engine.closed = UnavailableError("the model is being unloaded")
        await answering(200)(scope, receive, send)

    gate, engine = make(app)
    ask(gate, Client())
    assert Counter(ok=1) == gate.traffic.outcomes


def test_before_there_is_an_app_the_answer_is_503() -> None:
    """A request that comes too early is no accident."""
    gate, _ = make(None)
    assert 503 == ask(gate, Client()).status


def test_an_engine_that_is_full_refuses() -> None:
    """A request that generates needs a place; one that only asks does not."""
    gate, engine = make(answering(200))
    engine.full = UnavailableError("too many requests")
    assert 503 == ask(gate, Client()).status
    assert 200 == ask(gate, Client("/v1/models", "GET")).status
    assert Counter(refused=1) == gate.traffic.outcomes


def test_a_place_is_held_for_as_long_as_the_request_lasts() -> None:
    """It is given back whatever happens."""
    seen: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        seen.append(engine.admitted)
        await answering(200)(scope, receive, send)

    gate, engine = make(app)
    ask(gate, Client())
    assert ([1], 0) == (seen, engine.admitted)


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
    gate, _ = make(answering(status))
    ask(gate, Client())
    ask(gate, Client("/v1/models", "GET"))  # does not generate
    assert Counter({expected: 1}) == gate.traffic.outcomes


def test_an_app_that_fails_counts_as_the_engines_error() -> None:
    """Even when no response has begun; uvicorn answers 500 then, and logs the reason."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise RuntimeError("a mistake of somebody's")

    gate, _ = make(app)
    with pytest.raises(RuntimeError):
        ask(gate, Client())
    assert Counter(engine_error=1) == gate.traffic.outcomes


def test_a_wrong_key_counts_as_the_clients_mistake() -> None:
    """So a dashboard shows that somebody knocks."""
    gate, _ = make(answering(200), ["one"])
    ask(gate, Client())
    assert Counter(client_error=1) == gate.traffic.outcomes


def test_a_client_that_leaves_counts_as_cancelled() -> None:
    """Whether or not a response has begun."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        assert "http.disconnect" == (await receive())["type"]

    gate, _ = make(app)
    ask(gate, Client())
    assert Counter(cancelled=1) == gate.traffic.outcomes


def test_a_stream_of_an_engine_that_died_counts_as_its_error() -> None:
    """Such a stream is ended by vLLM with an error and HTTP's 200."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        engine.down = EngineDownError("the engine died")
        await answering(200, EVENTS)(scope, receive, send)

    gate, engine = make(app)
    client = ask(gate, Client())
    assert Counter(engine_error=1) == gate.traffic.outcomes
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
    """At the end of the model, or of the engine, nobody is left waiting or in doubt."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await steps(send)
        await asyncio.Event().wait()

    gate, _ = make(app)
    client = Client()

    async def end() -> None:
        task = asyncio.create_task(gate(client.scope, client.receive, client.send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait_for(task, 30)

    asyncio.run(end())
    assert status == client.status
    assert client.sent[-1]["body"].startswith(last)
    assert not client.sent[-1].get("more_body")
    assert Counter(engine_error=1) == gate.traffic.outcomes


def test_a_websocket_without_a_key_is_closed() -> None:
    """Realtime connections pass the same gate."""
    gate, _ = make(answering(200), ["one"])
    client = ask(gate, Client("/v1/realtime", kind="websocket"))
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
    gate, engine = make(endless(steps, seen), time_limit=0.05)
    client = Patient()
    ask(gate, client)
    assert (status, ["http.disconnect"]) == (client.status, seen)
    body = client.sent[-1]["body"]
    assert body.startswith(last)
    assert b"not done within 0.05 s, its time limit" in body
    assert not client.sent[-1].get("more_body")
    assert (Counter(timeout=1), 0) == (gate.traffic.outcomes, engine.admitted)


def test_in_time_nothing_is_ended() -> None:
    """A request that was answered in time is not ended afterwards."""
    gate, _ = make(answering(200), time_limit=0.5)

    async def main() -> None:
        client = Client()
        await gate(client.scope, client.receive, client.send)
        await asyncio.sleep(0.6)
        assert 200 == client.status

    asyncio.run(main())
    assert Counter(ok=1) == gate.traffic.outcomes


def test_an_app_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every route looks for its client; after a moment it is ended all the same."""
    monkeypatch.setattr("triton_vllm.openai_api.exchange._GRACE", 0.05)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    gate, _ = make(app, time_limit=0.05)
    assert 504 == ask(gate, Patient()).status
    assert Counter(timeout=1) == gate.traffic.outcomes


def test_a_websocket_has_no_time_limit() -> None:
    """A connection stays for many requests."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.1)
        await send({"type": "websocket.accept"})

    gate, _ = make(app, time_limit=0.02)
    client = ask(gate, Patient("/v1/realtime", kind="websocket"))
    assert ["websocket.accept"] == [message["type"] for message in client.sent]


def test_all_can_be_ended_with_a_reason() -> None:
    """Those under way are told; a request that comes later is served."""
    seen: list[str] = []
    gate, _ = make(endless(_half_a_stream, seen))
    clients = [Patient(), Patient()]

    async def main() -> int:
        tasks = [asyncio.create_task(gate(c.scope, c.receive, c.send)) for c in clients]
        await asyncio.sleep(0.05)
        ended = gate.end_all(UnavailableError("the grace is over"))
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        return ended

    assert 2 == asyncio.run(main())
    assert all(b"the grace is over" in client.sent[-1]["body"] for client in clients)
    assert Counter(refused=2) == gate.traffic.outcomes
    gate.app = answering(200)
    assert 200 == ask(gate, Client()).status


def test_a_prompt_that_may_not_wait_is_503() -> None:
    """The app knows no such error and answers 500, which the client does not get to see."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        engine.place.turned_away(UnavailableError("9 prompt tokens wait"))
        await answering(500)(scope, receive, send)

    gate, engine = make(app)
    client = ask(gate, Patient())
    assert (503, "9 prompt tokens wait") == (client.status, client.body["error"]["message"])
    assert Counter(refused=1) == gate.traffic.outcomes

"""How the end of serving is noticed, and what happens to the requests."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from triton_vllm.errors import UnavailableError
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.drain import Answer, Drain, Judge, ServerWatch, ask_server

READY, NOT_READY, GONE, UNCLEAR = Answer.READY, Answer.NOT_READY, Answer.GONE, Answer.UNCLEAR


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([NOT_READY, GONE, GONE], []),
        ([READY, READY], []),
        ([READY, NOT_READY, NOT_READY, NOT_READY], [False]),
        ([READY, GONE, GONE], [False]),
        ([READY, GONE, READY, GONE, READY], []),
        ([READY, UNCLEAR, UNCLEAR, UNCLEAR], []),
        ([READY, NOT_READY, UNCLEAR, NOT_READY], [False]),
        ([READY, GONE, GONE, READY, GONE, GONE], [False, True, False]),
    ],
    ids=["loading", "serving", "unload", "stop", "hiccups", "busy", "busy unload", "back again"],
)
def test_changes_follow_from_answers(answers: list[Answer], expected: list[bool]) -> None:
    """Only a model that was ready can leave; one odd answer says nothing."""
    judge = Judge()
    heard = [judge.hear(answer, in_use=False) for answer in answers]
    assert expected == [change for change in heard if change is not None]


def test_a_model_in_use_has_been_ready() -> None:
    """A server that stops before it was ever asked is noticed all the same."""
    judge = Judge()
    assert [None, False] == [judge.hear(GONE, in_use=True) for _ in range(2)]


@contextlib.contextmanager
def answering(reply: bytes | None) -> Iterator[tuple[str, int]]:
    """Run a server that answers one request, or closes the connection without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if reply is not None:
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()
        thread.join()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", READY),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", NOT_READY),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", UNCLEAR),
        (None, GONE),
    ],
    ids=["ready", "not ready", "restricted", "no answer"],
)
def test_the_server_is_asked(reply: bytes | None, expected: Answer) -> None:
    """Statuses are Triton's; a server that stops closes the connection without one."""
    with answering(reply) as http:
        assert expected == ask_server(http, "/v2/models/vllm/versions/1")


def test_a_closed_port_is_a_server_that_stops() -> None:
    """At SIGTERM Triton closes its HTTP port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        http = server.getsockname()
    assert GONE == ask_server(http, "/")


def test_our_own_trouble_is_no_servers_end() -> None:
    """Without a descriptor, or a way to the address, nobody knows: no drain follows from it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with answering(None) as http:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            asked_without_descriptors = ask_server(http, "/")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert GONE == ask_server(http, "/")  # which the server waits for
    nowhere = ("255.255.255.255", 80)
    assert (UNCLEAR, UNCLEAR) == (asked_without_descriptors, ask_server(nowhere, "/"))


def test_the_watch_tells_of_changes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback is called once a change."""
    monkeypatch.setattr("triton_vllm.limits.drain._PERIOD", 0.01)
    answers = iter([READY, GONE, GONE])
    changes: list[bool] = []
    watch = ServerWatch(lambda: next(answers, GONE), lambda: False, changes.append)
    deadline = time.monotonic() + 5
    while not changes and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.stop()
    assert ([False], []) == (changes, caplog.messages)


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    loop = EventLoopThread("engine")
    yield loop
    loop.stop()


class OtherDoor:
    """The OpenAI-compatible server, as far as the drain speaks to it."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin_drain(self, why: UnavailableError) -> None:
        self.heard.append("begin")

    def take_back(self) -> None:
        self.heard.append("take back")


class Served:
    """A request's coroutine: enters, waits, and says how it ended."""

    def __init__(self, admission: Admission, loop: EventLoopThread, seconds: float) -> None:
        self.end = ""
        self.ended = threading.Event()
        entered = threading.Event()

        async def request() -> None:
            try:
                with admission.admit():
                    entered.set()
                    await asyncio.sleep(seconds)
                self.end = "finished"
            except asyncio.CancelledError:
                self.end = "aborted"
            finally:
                self.ended.set()

        loop.spawn(request())
        assert entered.wait(5)


def test_what_runs_may_finish_until_the_limit(
    loop: EventLoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A short request finishes, a long one is aborted and counted, a new one refused."""
    admission = Admission(0, 0, lambda: 0)
    http = OtherDoor()
    drain = Drain(admission, loop, 0.3, http, "vllm")
    long, short = Served(admission, loop, 60), Served(admission, loop, 0.1)
    loop.call_soon(drain.begin)
    assert short.ended.wait(5)
    assert long.ended.wait(5)
    assert ("finished", "aborted") == (short.end, long.end)
    with pytest.raises(UnavailableError, match="unloaded or the server stopped"):
        admission.check()
    lines = caplog.messages
    assert any("2 requests may run for 0.3 s more" in line for line in lines)
    assert any("1 requests aborted" in line for line in lines)
    assert drain.ended is not None
    assert ["begin"] == http.heard


def test_a_server_that_is_ready_again_takes_the_drain_back(loop: EventLoopThread) -> None:
    """Nothing is aborted, and new requests are admitted."""
    admission = Admission(0, 0, lambda: 0)
    http = OtherDoor()
    drain = Drain(admission, loop, 0.2, http, "vllm")
    request = Served(admission, loop, 0.5)
    loop.call_soon(drain.begin)
    loop.call_soon(drain.take_back)
    assert request.ended.wait(5)
    assert "finished" == request.end
    admission.check()
    assert drain.ended is None
    assert ["begin", "take back"] == http.heard

"""How the end of serving is noticed."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from triton_vllm.limits.server_watch import (
    ReadinessDebouncer,
    ServerWatch,
    ask_server,
    server_stops,
)

READY, GONE, UNKNOWN = True, False, None


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([GONE, GONE, GONE], []),
        ([READY, READY], []),
        ([READY, GONE, GONE], [False]),
        ([READY, GONE, GONE, GONE], [False]),
        ([READY, GONE, READY, GONE, READY], []),
        ([READY, UNKNOWN, UNKNOWN, UNKNOWN], []),
        ([READY, GONE, UNKNOWN, GONE], [False]),
        ([READY, GONE, GONE, READY, GONE, GONE], [False, True, False]),
    ],
    ids=["loading", "serving", "unload", "stopped", "hiccups", "busy", "busy unload", "back again"],
)
def test_changes_follow_from_answers(answers: list[bool | None], expected: list[bool]) -> None:
    """Only a model that was ready can leave; one odd answer says nothing."""
    readiness = ReadinessDebouncer()
    heard = [readiness.update(answer, used=False) for answer in answers]
    assert expected == [change for change in heard if change is not None]


def test_a_model_that_was_used_has_been_ready() -> None:
    """A server that stops before it was ever asked is noticed all the same."""
    readiness = ReadinessDebouncer()
    assert [None, False] == [readiness.update(GONE, used=True) for _ in range(2)]


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
        (b"no HTTP at all\r\n\r\n", UNKNOWN),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", GONE),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", UNKNOWN),
        (None, GONE),
    ],
    ids=["ready", "no HTTP", "not ready", "restricted", "no answer"],
)
def test_the_server_is_asked(reply: bytes | None, expected: bool | None) -> None:
    """Statuses are Triton's; a server that stops closes the connection without one."""
    with answering(reply) as http:
        assert expected is ask_server(http, "/v2/models/vllm/versions/1")


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
    assert (UNKNOWN, UNKNOWN) == (asked_without_descriptors, ask_server(nowhere, "/"))


def test_the_watch_tells_of_changes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback is called once a change."""
    monkeypatch.setattr("triton_vllm.limits.server_watch._PERIOD", 0.01)
    answers = iter([READY, GONE, GONE])
    changes: list[bool] = []
    watch = ServerWatch(lambda: next(answers, GONE), lambda: False, changes.append)
    deadline = time.monotonic() + 5
    while not changes and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.stop()
    assert ([False], []) == (changes, caplog.messages)


def test_a_server_that_accepts_connections_does_not_stop() -> None:
    """It only unloads a model. After SIGTERM, or without HTTP, it may stop."""
    with socket.create_server(("127.0.0.1", 0)) as http:
        assert not server_stops(http.getsockname())
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        assert server_stops(nobody.getsockname())
    assert server_stops(None)

"""Responses that wait for Triton's HTTP: what the kernel tells of them, and what is held back."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.limits import http_backlog
from triton_vllm.limits.http_backlog import HttpBacklog, NoHttpBacklog, watch_http_backlog
from triton_vllm.limits.server_sockets import ServerSockets

COST, CAPACITY = 10, 1000  # so that half of it is room for 50


class FakeSockets:
    """Sockets whose fullest one holds what each look is told, and the last of it from then on."""

    capacity = CAPACITY
    cost = COST

    def __init__(self, *fullest: int | OSError) -> None:
        self._left = list(fullest)
        self.looks = 0
        self.scans = 0

    def scan(self) -> None:
        self.scans += 1

    def fullest(self) -> int:
        self.looks += 1
        told = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        if isinstance(told, OSError):
            raise told
        return told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once."""
    monkeypatch.setattr(http_backlog, "_LONGEST_WAIT_SECONDS", 0.05)


@pytest.mark.parametrize(
    ("waiting", "front_ends", "expected"),
    [
        pytest.param(0, 1, 51, id="nothing waits: the response itself, and half of the buffer"),
        pytest.param(300, 1, 21, id="what waits is taken off"),
        pytest.param(0, 5, 11, id="front ends share the room"),
        pytest.param(500, 1, 1, id="half full: one by one"),
    ],
)
def test_how_many_responses_pass_for_a_look(waiting: int, front_ends: int, expected: int) -> None:
    """Together the front ends can fill no more than half of a buffer unseen."""
    sockets = FakeSockets(waiting)
    backlog = HttpBacklog(sockets, front_ends, "m")
    for _ in range(expected):
        backlog.before_send()
    assert 1 == sockets.looks
    backlog.before_send()
    assert 2 == sockets.looks


def test_a_response_waits_while_a_socket_is_full() -> None:
    """It looks until there is room."""
    sockets = FakeSockets(900, 800, 501, 500)
    HttpBacklog(sockets, 1, "m").before_send()
    assert 4 == sockets.looks


def test_a_stuck_thread_holds_up_the_others_once(caplog: pytest.LogCaptureFixture) -> None:
    """After the longest wait responses go on for a while without a look, and the log says so."""
    sockets = FakeSockets(900)
    backlog = HttpBacklog(sockets, 1, "m")
    backlog.before_send()
    looks = sockets.looks
    for _ in range(1000):
        backlog.before_send()
    assert looks == sockets.looks
    backlog.before_send()  # waits once more, and says nothing more
    assert looks < sockets.looks
    (line,) = caplog.messages
    assert "m: Triton's HTTP may lose responses" in line
    assert "it has sent nothing for" in line


def test_an_error_of_the_kernel_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The log has it once."""
    backlog = HttpBacklog(FakeSockets(OSError("no buffer space")), 1, "m")
    for _ in range(3000):
        backlog.before_send()
    (line,) = caplog.messages
    assert "no buffer space" in line


def test_the_log_says_once_that_http_is_slow(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second of waiting, in all."""
    monkeypatch.setattr(http_backlog, "_TELL_SECONDS", 0.01)
    backlog = HttpBacklog(FakeSockets(*[900] * 30, 500), 1, "m")
    backlog.before_send()
    (line,) = caplog.messages
    assert "Triton's HTTP is slower than the engine" in line


def test_new_sockets_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton starts its HTTP after the models: it is looked for again, ever less often."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sockets = FakeSockets(500)
    backlog = HttpBacklog(sockets, 1, "m")
    scans = []
    for passed in (0.0, 0.5, 1.0, 1.5, 3.0):
        now = 100.0 + passed
        backlog.before_send()
        scans.append(sockets.scans)
    assert [1, 1, 2, 2, 3] == scans


def test_a_server_without_http_is_not_watched() -> None:
    """Nothing is lost there."""
    assert type(watch_http_backlog(ServerOptions(http=None), 1, "m")) is NoHttpBacklog


def test_a_kernel_that_does_not_tell_is_mentioned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is served all the same."""

    def refuse(pid: int) -> None:
        raise OSError("Protocol not supported")

    monkeypatch.setattr(http_backlog, "ServerSockets", refuse)
    watched = watch_http_backlog(ServerOptions(http=("127.0.0.1", 8000)), 1, "m")
    assert type(watched) is NoHttpBacklog
    (line,) = caplog.messages
    assert logging.WARNING == caplog.records[0].levelno
    assert "Protocol not supported" in line


@pytest.fixture
def sockets() -> Iterator[ServerSockets]:
    """Those of this process, as the kernel tells of them."""
    try:
        found = ServerSockets(os.getpid())
    except OSError as error:
        pytest.skip(f"this kernel does not tell: {error}")
    yield found
    found.close()


def fill(writer: socket.socket) -> int:
    """Send messages as small as Triton's until the buffer is full; return how many."""
    writer.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while writer.send(b"17 bytes, as its."):
            sent += 1
    return sent


def test_what_waits_is_what_the_kernel_counts(sockets: ServerSockets) -> None:
    """Each message costs as much as the first, up to a full buffer."""
    reader, writer = socket.socketpair()
    with writer, reader:
        sockets.scan()
        assert 0 == sockets.fullest()
        sent = fill(writer)
        assert sent == -(-sockets.capacity // sockets.cost)
        assert sent * sockets.cost == sockets.fullest()
        reader.recv(17)
        assert (sent - 1) * sockets.cost == sockets.fullest()
    assert 0 == sockets.fullest()


def test_either_end_may_be_the_writer(sockets: ServerSockets) -> None:
    """What waits is seen from both."""
    for reader, writer in (socket.socketpair(), socket.socketpair()[::-1]):
        with writer, reader:
            sockets.scan()
            sent = fill(writer)
            assert sent * sockets.cost == sockets.fullest()


def test_later_looks_find_a_pair_in_turn_and_keep_to_it(sockets: ServerSockets) -> None:
    """After the first looks not all are asked about, unless they are in use."""
    pairs = [socket.socketpair() for _ in range(7)]
    with contextlib.ExitStack() as stack:
        for end in itertools.chain(*pairs):
            stack.enter_context(end)
        sockets.scan()
        assert {0} == {sockets.fullest() for _ in range(100)}
        sent = fill(pairs[3][0])
        looks = [sockets.fullest() for _ in range(100)]
        assert sent * sockets.cost in looks
        found = looks.index(sent * sockets.cost)
        assert {sent * sockets.cost} == set(looks[found:])


def test_only_pairs_of_the_process_count(sockets: ServerSockets) -> None:
    """Not a socket whose other end another process holds, as a client's would be."""
    writer, reader = socket.socketpair()
    with writer, subprocess.Popen(["sleep", "20"], stdin=reader.fileno()) as other:
        reader.close()
        fill(writer)
        sockets.scan()
        assert 0 == sockets.fullest()
        other.kill()


def test_sockets_of_a_process_that_is_gone_are_an_error(sockets: ServerSockets) -> None:
    """Its descriptors cannot be listed."""
    sockets.close()
    gone = ServerSockets(2**22 - 1)
    with pytest.raises(OSError, match="4194303"):
        gone.scan()
    gone.close()

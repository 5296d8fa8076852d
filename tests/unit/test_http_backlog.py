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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.fakes import FakeSender, fake_pb_utils, generation_request
from triton_vllm.config.server_options import ServerOptions
from triton_vllm.limits import http_backlog
from triton_vllm.limits.http_backlog import HttpBacklog, NoHttpBacklog, watch_http_backlog
from triton_vllm.limits.server_sockets import ServerSockets
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.stream import SenderPool

COST, SIZE = 10, 900  # so that a third is room for 30


class FakeSockets:
    """Tells the given levels one by one, then the last of them again and again."""

    cost = COST

    def __init__(self, *levels: int | OSError) -> None:
        self._levels = list(levels)
        self.looks = 0
        self.scans = 0
        self.resets = 0
        self.is_closed = False

    def scan(self) -> None:
        self.scans += 1

    def fullest(self) -> tuple[int, int]:
        self.looks += 1
        level = self._levels.pop(0) if len(self._levels) > 1 else self._levels[0]
        if isinstance(level, OSError):
            raise level
        return level, SIZE

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.is_closed = True


class Clock:
    """The time of ``http_backlog``, which only tests move on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the time."""
    clock = Clock()
    monkeypatch.setattr(http_backlog, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("waiting", "front_ends", "expected"),
    [
        pytest.param(0, 1, 31, id="nothing waits: the response itself, and a third of the queue"),
        pytest.param(200, 1, 11, id="what waits is taken off"),
        pytest.param(0, 5, 7, id="front ends share the room"),
        pytest.param(300, 1, 1, id="a third waits: one by one"),
    ],
)
def test_how_many_responses_pass_for_a_look(waiting: int, front_ends: int, expected: int) -> None:
    """Together the front ends fill no more than a third of a queue unseen."""
    sockets = FakeSockets(waiting)
    backlog = HttpBacklog(sockets, front_ends, "m")
    for _ in range(expected):
        backlog.before_send()
    assert 1 == sockets.looks
    backlog.before_send()
    assert 2 == sockets.looks


def test_a_response_waits_while_a_queue_is_full() -> None:
    """It looks until there is room, and tells how long that took."""
    sockets = FakeSockets(800, 700, 301, 300)
    backlog = HttpBacklog(sockets, 1, "m")
    assert not backlog.is_behind
    assert 0.002 <= backlog.before_send()
    assert 4 == sockets.looks
    assert backlog.is_behind


def test_two_threads_never_send_more_than_there_is_room_for() -> None:
    """What one has taken the other one cannot take."""
    sockets = FakeSockets(0)
    backlog = HttpBacklog(sockets, 1, "m")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: backlog.before_send(), range(31 * 100)))
    assert 100 == sockets.looks


def test_a_stuck_thread_holds_up_the_others_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All senders together wait once; then they go on for a minute, and the log says so."""
    assert 5 == http_backlog._STUCK_SECONDS
    monkeypatch.setattr(http_backlog, "_STUCK_SECONDS", 0.3)
    sockets = FakeSockets(800)
    backlog = HttpBacklog(sockets, 1, "m")
    since = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        waited = list(pool.map(lambda _: backlog.before_send(), range(4)))
    assert 0.2 <= min(waited)  # the others wait for the one that looks
    assert time.monotonic() - since < 0.9
    assert backlog.is_behind
    looks = sockets.looks
    for _ in range(5000):
        backlog.before_send()
    assert looks == sockets.looks
    (line,) = caplog.messages
    assert "m: for 60 s Triton's HTTP may lose responses" in line


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param([*range(800, 299, -1)], id="slowly"),
        pytest.param([*(800, 700) * 250, 300], id="another front end fills it again"),
    ],
)
def test_a_queue_of_which_something_is_taken_is_not_stuck(
    levels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes: each level below the one before gives it more time."""
    monkeypatch.setattr(http_backlog, "_STUCK_SECONDS", 0.2)
    sockets = FakeSockets(*levels)  # of a millisecond each, at least
    HttpBacklog(sockets, 1, "m").before_send()
    assert 501 == sockets.looks


def test_an_error_of_the_kernel_stops_nothing(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """It looks again a minute later."""
    sockets = FakeSockets(OSError("no buffer space"), 0)
    backlog = HttpBacklog(sockets, 1, "m")
    for _ in range(3000):
        backlog.before_send()
    assert (1, 1) == (sockets.looks, sockets.resets)
    (line,) = caplog.messages
    assert "no buffer space" in line
    clock.now += 60
    backlog.before_send()
    assert 2 == sockets.looks


def test_the_log_says_once_that_http_is_slow(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If responses wait for a tenth of the time."""
    monkeypatch.setattr(http_backlog, "_LONG_SECONDS", 0.01)
    backlog = HttpBacklog(FakeSockets(*range(800, 700, -1), 300), 1, "m")
    backlog.before_send()
    (line,) = caplog.messages
    assert "Triton's HTTP is slower than the engine" in line


def test_new_sockets_are_found(clock: Clock) -> None:
    """Triton starts its HTTP after the models: it is looked for again, ever less often."""
    sockets = FakeSockets(300)
    backlog = HttpBacklog(sockets, 1, "m")
    scans = []
    for passed in (0.0, 0.5, 0.5, 0.5, 1.5):
        clock.now += passed
        backlog.before_send()
        scans.append(sockets.scans)
    assert [1, 1, 2, 2, 3] == scans


def test_nothing_waits_once_it_is_closed() -> None:
    """The last responses of a model that ends; a thread that waits goes on."""
    sockets = FakeSockets(800)
    backlog = HttpBacklog(sockets, 1, "m")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(backlog.before_send)
        while not sockets.looks:
            time.sleep(0.001)
        backlog.close()
        waiting.result(5)
    looks = sockets.looks
    backlog.before_send()
    assert sockets.is_closed
    assert looks == sockets.looks


def test_the_senders_ask_before_each_response_and_close_it() -> None:
    """In the pool that sends for the model."""
    sockets = FakeSockets(300)
    backlog = HttpBacklog(sockets, 1, "m")
    pool = SenderPool(fake_pb_utils, 1, 1, lambda flush: flush(), "m", backlog)
    sender = FakeSender()
    stream = pool.open(sender, generation_request())
    for last in (False, False, True):
        stream.send(Delta(("a",), 1, final=last))
    deadline = time.monotonic() + 5
    while len(sender.sent) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    pool.stop(5)
    assert 3 == len(sender.sent)
    assert 3 == sockets.looks
    assert sockets.is_closed


def test_the_senders_count_how_long_they_wait() -> None:
    """Apart from the time that they work."""

    class Behind(NoHttpBacklog):
        def before_send(self) -> float:
            return 100.0

    pool = SenderPool(fake_pb_utils, 1, 1, lambda flush: flush(), "m", Behind())
    stream = pool.open(FakeSender(), generation_request())
    for last in (False, True):
        stream.send(Delta(("a",), 1, final=last))
    pool.stop(5)
    (traffic,) = pool.traffic
    assert 200 == traffic.http_wait_seconds
    assert -200 == pytest.approx(traffic.seconds, abs=5)  # as it has not really waited


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
    """Those of this process, as the kernel reports them."""
    try:
        found = ServerSockets(os.getpid())
    except OSError as error:
        pytest.skip(f"this kernel does not report them: {error}")
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
    size = writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    with writer, reader:
        sockets.scan()
        assert 0 == sockets.fullest()[0]
        sent = fill(writer)
        assert sent == -(-size // sockets.cost)
        assert (sent * sockets.cost, size) == sockets.fullest()
        reader.recv(17)
        assert ((sent - 1) * sockets.cost, size) == sockets.fullest()
    assert 0 == sockets.fullest()[0]


def test_the_size_is_that_of_the_servers_own_buffer(sockets: ServerSockets) -> None:
    """Not that of a new one, whose default may have changed since."""
    reader, writer = socket.socketpair()
    with writer, reader:
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        size = writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sockets.scan()
        sent = fill(writer)
        assert (sent * sockets.cost, size) == sockets.fullest()


def test_either_end_may_be_the_writer(sockets: ServerSockets) -> None:
    """What waits is seen from both."""
    for reader, writer in (socket.socketpair(), socket.socketpair()[::-1]):
        with writer, reader:
            sockets.scan()
            sent = fill(writer)
            assert sent * sockets.cost == sockets.fullest()[0]


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """More pairs than a look is at."""
    made = [socket.socketpair() for _ in range(40)]
    yield made
    for end in itertools.chain(*made):
        end.close()


def test_looks_find_one_of_many_pairs_in_turn_and_keep_to_it(
    sockets: ServerSockets, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Not all are asked about, unless they are in use."""
    sockets.scan()
    before = sockets.fullest()[0]
    sent = fill(pairs[30][0])
    looks = [sockets.fullest()[0] for _ in range(100)]
    assert sent * sockets.cost > before
    found = looks.index(sent * sockets.cost)
    assert found < 10
    assert {sent * sockets.cost} == set(looks[found:])


def test_as_many_as_are_in_use_are_asked_about(
    sockets: ServerSockets, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """However many, though the kernel takes 64 questions at once."""
    many = pairs + [socket.socketpair() for _ in range(60)]
    sockets.scan()
    for writer, _ in many:
        writer.send(b"17 bytes, as its.")
    for _ in range(100):
        sockets.fullest()
    sent = fill(many[-1][0])
    assert (sent + 1) * sockets.cost == sockets.fullest()[0]
    for end in itertools.chain(*many[len(pairs) :]):
        end.close()


def test_each_look_is_at_all_of_a_few_pairs(sockets: ServerSockets) -> None:
    """As tritonserver has them: a burst of new streams finds none unwatched."""
    made = [socket.socketpair() for _ in range(10)]
    with contextlib.ExitStack() as stack:
        for end in itertools.chain(*made):
            stack.enter_context(end)
        sockets.scan()
        if len(sockets._ends) > 16:
            pytest.skip("this process has other pairs")
        for _ in range(100):
            sockets.fullest()
        sent = fill(made[3][1])
        assert sent * sockets.cost == sockets.fullest()[0]


def test_only_pairs_of_the_process_count(sockets: ServerSockets) -> None:
    """Not a socket whose other end another process holds, as a client's would be."""
    writer, reader = socket.socketpair()
    with writer, subprocess.Popen(["sleep", "20"], stdin=reader.fileno()) as other:
        reader.close()
        fill(writer)
        sockets.scan()
        assert 0 == sockets.fullest()[0]
        other.kill()


def test_answers_that_were_left_are_forgotten(sockets: ServerSockets) -> None:
    """As after an error in the middle of a dump."""
    next(sockets._peers())
    sockets.reset()
    reader, writer = socket.socketpair()
    with writer, reader:
        sockets.scan()
        sent = fill(writer)
        assert sent * sockets.cost == sockets.fullest()[0]


def test_sockets_of_a_process_that_is_gone_are_an_error(sockets: ServerSockets) -> None:
    """Its descriptors cannot be listed, and nothing is left open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(OSError, match=str(gone.pid)):
        ServerSockets(gone.pid)
    assert before == len(list(Path("/proc/self/fd").iterdir()))

"""Cancellation reaches the task of the client that left, once, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.fakes import FakeSender, at_once, fake_pb_utils, generation_request, logged
from triton_vllm.errors import CancelledError
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.cancellation import CancellationWatcher
from triton_vllm.protocol.encode import ResponseEncoder
from triton_vllm.protocol.stream import Outbox, ResponseStream
from triton_vllm.topology.load_balancing import NoLoadBalancer

PERIOD = 0.01


@pytest.fixture
def watcher() -> Iterator[CancellationWatcher]:
    """A watcher that asks a hundred times a second."""
    watcher = CancellationWatcher(PERIOD)
    yield watcher
    watcher.stop()


class Restless(dict[Any, Any]):
    """The live requests, among which the event loop comes and goes while they are listed."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def items(self) -> Any:
        if self._times:
            self._times -= 1
            raise RuntimeError("dictionary changed size during iteration")
        return super().items()


@contextlib.contextmanager
def watched(watcher: CancellationWatcher, sender: Any) -> Iterator[None]:
    """Be a live request whose client is watched."""
    admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
    with admission.admit() as live, watcher.watch(live, stream_of(sender).is_cancelled):
        yield


def stream_of(sender: Any) -> ResponseStream:
    return ResponseStream(
        ResponseEncoder(fake_pb_utils), sender, Outbox(at_once), generation_request()
    )


def test_the_task_of_a_client_that_left_is_cancelled(watcher: CancellationWatcher) -> None:
    """The task of a cancelled request is cancelled; another request's task goes on."""
    leaving, staying = FakeSender(), FakeSender()

    async def request(sender: FakeSender, answered: asyncio.Event) -> None:
        with watched(watcher, sender):
            await answered.wait()

    async def main() -> None:
        answered = asyncio.Event()
        tasks = [asyncio.create_task(request(sender, answered)) for sender in (leaving, staying)]
        await asyncio.sleep(5 * PERIOD)
        leaving.cancelled = True
        with pytest.raises(CancelledError):
            await tasks[0]
        answered.set()
        await tasks[1]

    asyncio.run(main())


def test_a_task_is_cancelled_once(watcher: CancellationWatcher) -> None:
    """The clean-up after a cancellation, the engine's abort, is not cancelled in its turn."""
    sender = FakeSender()
    sender.cancelled = True
    cleaned_up: list[str] = []

    async def request() -> None:
        with watched(watcher, sender):
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(10 * PERIOD)
                cleaned_up.append("aborted in the engine")

    async def main() -> None:
        with pytest.raises(CancelledError):
            await asyncio.create_task(request())

    asyncio.run(main())
    assert ["aborted in the engine"] == cleaned_up


def test_a_request_that_has_ended_is_not_cancelled(watcher: CancellationWatcher) -> None:
    """Once watch() is left, its task is not cancelled, however late the client's leaving shows."""
    sender = FakeSender(slow=PERIOD / 2)

    async def request() -> None:
        with watched(watcher, sender):
            await asyncio.sleep(3 * PERIOD)
            sender.cancelled = True
        await asyncio.sleep(10 * PERIOD)

    for _ in range(5):
        sender.cancelled = False
        asyncio.run(request())


def test_a_failing_question_is_logged_and_the_others_are_asked(
    watcher: CancellationWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of one stream neither ends the thread nor touches other requests."""

    class Broken(FakeSender):
        def is_cancelled(self) -> bool:
            raise RuntimeError("no such request")

    leaving = FakeSender()

    async def request(sender: FakeSender) -> None:
        with watched(watcher, sender):
            await asyncio.sleep(60)

    async def main() -> None:
        broken = asyncio.create_task(request(Broken()))
        good = asyncio.create_task(request(leaving))
        await asyncio.sleep(5 * PERIOD)
        leaving.cancelled = True
        with pytest.raises(CancelledError):
            await good
        assert not broken.done()
        broken.cancel()

    asyncio.run(main())
    assert ("ERROR", "cancellation: no such request") == logged(caplog)[0]


def test_requests_that_come_while_it_lists_them_do_not_end_it(
    watcher: CancellationWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    """The next round sees them all."""
    watcher._live = Restless(3)
    leaving = FakeSender()

    async def main() -> None:
        with watched(watcher, leaving):
            leaving.cancelled = True
            await asyncio.sleep(60)

    async def cancelled() -> None:
        with pytest.raises(CancelledError):
            await asyncio.wait_for(asyncio.create_task(main()), 30)

    asyncio.run(cancelled())
    assert [] == caplog.messages


def test_a_question_without_an_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Triton that does not answer is left behind, and the model can be unloaded."""
    monkeypatch.setattr("triton_vllm.limits.cancellation._STOP_SECONDS", 0.1)
    asked, answer = threading.Event(), threading.Event()

    class Stuck(FakeSender):
        def is_cancelled(self) -> bool:
            asked.set()
            answer.wait(30)
            return False

    watcher = CancellationWatcher(PERIOD)

    async def main() -> None:
        with watched(watcher, Stuck()):
            await asyncio.to_thread(asked.wait, 30)

    asyncio.run(main())
    since = time.monotonic()
    watcher.stop()
    assert time.monotonic() - since < 10
    answer.set()

"""The event loop in a thread: results, errors, drain and stop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from triton_vllm import event_loop
from triton_vllm.event_loop import EventLoopThread


def test_call_returns_the_result() -> None:
    """A coroutine runs in the loop's thread and its result comes back."""

    async def thread_name() -> str:
        return threading.current_thread().name

    loop = EventLoopThread("engine")
    assert "engine" == loop.call(thread_name())
    loop.stop()


def test_call_raises_the_original_exception() -> None:
    """An exception crosses the threads as the object it is."""
    error = ValueError("original")

    async def fail() -> None:
        raise error

    loop = EventLoopThread("engine")
    with pytest.raises(ValueError, match="original") as raised:
        loop.call(fail())
    assert error is raised.value
    loop.stop()


def test_a_loop_that_cannot_start_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the loop from starting is raised to the one who wanted it, and nobody hangs."""

    def fail() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    monkeypatch.setattr(event_loop, "_new_event_loop", fail)
    with pytest.raises(OSError, match="too many open files"):
        EventLoopThread("engine")


def test_drain_waits_for_the_requests() -> None:
    """Requests that end within the deadline are not cancelled."""
    ended: list[int] = []

    async def request(number: int) -> None:
        await asyncio.sleep(0.05)
        ended.append(number)

    loop = EventLoopThread("engine")
    for number in range(3):
        loop.spawn(request(number))
    assert 0 == loop.call(loop.drain(5))
    assert [0, 1, 2] == sorted(ended)
    loop.stop()


def test_drain_cancels_the_late_ones_and_counts_them() -> None:
    """After the deadline the rest are cancelled, run their own clean-up, and are counted."""
    cleaned_up = threading.Event()

    async def late() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    async def quick() -> None:
        pass

    loop = EventLoopThread("engine")
    loop.spawn(late())
    loop.spawn(quick())
    assert 1 == loop.call(loop.drain(0.05))
    assert cleaned_up.is_set()
    loop.stop()


def test_drain_of_an_idle_loop_returns_at_once() -> None:
    """Without requests there is nothing to wait for, whatever runs in the background."""

    async def background() -> None:
        await asyncio.sleep(60)

    loop = EventLoopThread("engine")
    loop.spawn_background(background())
    start = time.monotonic()
    assert 0 == loop.call(loop.drain(60))
    assert time.monotonic() - start < 5
    loop.stop()


def test_stop_cancels_what_is_left() -> None:
    """Stopping the loop lets the background coroutines clean up, then ends the thread."""
    cleaned_up = threading.Event()
    running = threading.Event()

    async def background() -> None:
        try:
            running.set()
            await asyncio.sleep(60)
        finally:
            cleaned_up.set()

    loop = EventLoopThread("engine-to-stop")
    loop.spawn_background(background())
    assert running.wait(5)
    loop.stop()
    assert cleaned_up.is_set()
    assert "engine-to-stop" not in [thread.name for thread in threading.enumerate()]


def test_a_failing_request_does_not_end_the_loop() -> None:
    """One request's exception leaves the loop to the others."""
    complaints: list[str] = []

    async def fail() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: complaints.append(context["message"])
        )
        raise ValueError("mine alone")

    async def answer() -> int:
        return 42

    loop = EventLoopThread("engine")
    loop.spawn(fail())
    assert 42 == loop.call(answer())
    loop.stop()

"""The event loop in a thread: results, errors, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import threading
from pathlib import Path
from typing import Any

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


def test_what_blocks_runs_beside_the_loop() -> None:
    """Always in one thread, which lives on; the loop answers meanwhile, and errors come through."""
    asked, answered = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def block() -> None:
        threads.append(threading.current_thread())
        asked.set()
        assert answered.wait(30)

    async def answer() -> None:
        answered.set()

    def fail() -> None:
        raise ValueError("no engine")

    loop = EventLoopThread("engine")
    for _ in range(2):
        loop.spawn(loop.in_thread(block))
        assert asked.wait(30)
        loop.call(answer())
        asked.clear()
    with pytest.raises(ValueError, match="no engine"):
        loop.call(loop.in_thread(fail))
    assert threads[0] is threads[1]
    assert threads[0].is_alive()
    loop.stop()
    assert not threads[0].is_alive()


def test_a_loop_that_cannot_start_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps the loop from starting is raised to the one who wanted it, and nobody hangs."""

    def fail() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    monkeypatch.setattr(event_loop, "_new_event_loop", fail)
    with pytest.raises(OSError, match="too many open files"):
        EventLoopThread("engine")


def test_an_exit_is_an_error_and_not_a_hang() -> None:
    """A library that calls sys.exit in the loop fails the call, and the loop goes on."""

    async def leave() -> None:
        raise SystemExit(3)

    async def work() -> int:
        return 7

    loop = EventLoopThread("engine")
    with pytest.raises(RuntimeError, match="tried to exit the process with 3"):
        loop.call(leave(), timeout=5)
    assert 7 == loop.call(work(), timeout=5)
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
    loop.spawn(background())
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


def _loops() -> list[Any]:
    """Return the makers of asyncio's event loop, and of uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return [asyncio.new_event_loop]
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("exit_of", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("new_loop", _loops(), ids=lambda make: make.__module__)
def test_an_exit_in_anybodys_task_leaves_the_loop_to_the_others(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    new_loop: Any,
    exit_of: type[BaseException],
) -> None:
    """A request's own coroutine, and a task that it has started: requests beside them go on."""
    monkeypatch.setattr(event_loop, "_new_event_loop", new_loop)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def leave() -> None:
        raise exit_of("3")

    async def start_one_that_leaves() -> None:
        await asyncio.wait([asyncio.create_task(leave())])

    async def other_request() -> None:
        begun.set()
        while not go_on.is_set():  # noqa: ASYNC110 (set by another thread)
            await asyncio.sleep(0.01)
        ended.set()

    async def work() -> int:
        return 7

    loop = EventLoopThread("engine")
    loop.spawn(other_request())
    assert begun.wait(5)
    loop.spawn(leave())
    loop.spawn(start_one_that_leaves())
    assert 7 == loop.call(work(), timeout=5)
    go_on.set()
    assert ended.wait(5)
    loop.stop()
    gc.collect()  # now, and not after the tests, asyncio complains of the tasks
    assert 2 == caplog.text.count(f"a task tried to end the process: {exit_of.__name__}")


def pidfds() -> int:
    """Return how many of this process's descriptors stand for processes."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            count += "pidfd" in str(descriptor.readlink())
    return count


@pytest.mark.parametrize("forgotten", [False, True], ids=["told", "forgotten"])
def test_an_exit_is_told_once_and_holds_no_descriptor(forgotten: bool) -> None:
    """Of any process; who no longer wants to know leaves nothing behind either."""
    told: list[int] = []
    before = pidfds()
    loop = EventLoopThread("engine")
    with subprocess.Popen(["sleep", "5"]) as process:

        async def watch() -> None:
            forget = loop.on_exit(process.pid, told.append)
            assert before + 1 == pidfds()
            if forgotten:
                forget()
                forget()
            process.kill()
            await asyncio.sleep(0.3)
            forget()
            assert before == pidfds()

        loop.call(watch())
    loop.stop()
    assert ([] if forgotten else [process.pid]) == told


def test_an_exit_before_the_watch_is_told(gone: int) -> None:
    """As where the engine dies while it is being joined."""
    told: list[int] = []
    loop = EventLoopThread("engine")

    async def watch() -> None:
        loop.on_exit(gone, told.append)
        loop.on_exit(gone, told.append)()  # and no more, who does not want to know
        assert [] == told
        await asyncio.sleep(0)

    loop.call(watch())
    loop.stop()
    assert [gone] == told


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended, and nothing is left of."""
    with subprocess.Popen(["true"]) as process:
        return process.pid

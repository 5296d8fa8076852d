"""An asyncio event loop in a thread of its own, for vLLM's engine and the requests' coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """Runs coroutines that other threads hand over."""

    def __init__(self, name: str) -> None:
        """Start the loop. Raises what kept it from starting."""
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps no reference to them
        self._ended = False
        # For as long as the loop lives: Linux ends a thread's children with it (child_process.py).
        self._blocking = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-blocking")
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        self._loop = started.result()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run ``coroutine`` in the loop; return its result or raise its exception."""
        running = asyncio.run_coroutine_threadsafe(_without_exit(coroutine), self._loop)
        return running.result(timeout)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call what blocks in a thread beside the loop, always the same; return its result.

        Raises what it raises. The loop goes on meanwhile. Event loop only.
        """
        return await self._loop.run_in_executor(self._blocking, function)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine in the loop and return at once; ``stop`` cancels it. Any thread."""
        self._loop.call_soon_threadsafe(self._start, coroutine)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback`` in the loop, soon. Any thread."""
        self._loop.call_soon_threadsafe(callback, *args)

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call ``callback(pid)`` once when the process ``pid`` exits. Event loop only.

        Without polling: Linux makes a pidfd readable then. It need not be a child, and may have
        ended already. Returns what ends the watch; the exit does, too.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return self._loop.call_soon(callback, pid).cancel
        watching = contextlib.ExitStack()
        watching.callback(os.close, pidfd)
        watching.callback(self._loop.remove_reader, pidfd)

        def exited() -> None:
            watching.close()
            callback(pid)

        self._loop.add_reader(pidfd, exited)
        return watching.close

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()
        self._blocking.shutdown()

    def _end(self) -> None:
        self._ended = True
        self._loop.stop()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            loop = _new_event_loop()
        except BaseException as error:
            started.set_exception(error)
            return
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set_result, loop)
        try:
            while not self._ended:
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as error:
                    # SystemExit in any task stops the loop for all: run it again.
                    what = f"a task tried to end the process: {type(error).__name__}"
                    loop.call_exception_handler({"message": what, "exception": error})
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _without_exit(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine``; turn a SystemExit, which would end the loop unseen, into an error."""
    try:
        return await coroutine
    except SystemExit as error:
        raise RuntimeError(f"it tried to exit the process with {error.code!r}") from error


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where it is installed (vLLM brings it), else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop

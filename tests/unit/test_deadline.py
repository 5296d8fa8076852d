"""Time limits: what ends a request, when, and as what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from triton_vllm.errors import DeadlineError
from triton_vllm.limits import timeout as deadline
from triton_vllm.limits.timeout import Deadline, NoDeadline, shorter


@pytest.mark.parametrize(
    ("asked", "triton", "expected"),
    [(None, 0, None), (2.0, 0, 2.0), (None, 1_500_000, 1.5), (2.0, 500_000, 0.5), (1.0, 9**9, 1.0)],
)
def test_the_shorter_limit_counts(asked: float | None, triton: int, expected: float | None) -> None:
    """Triton's timeout is in microseconds, and 0 is none."""
    assert expected == shorter(asked, triton)


def test_too_long_is_an_error_with_the_limit() -> None:
    """What takes longer is cancelled, and leaves as DeadlineError."""

    async def main() -> None:
        with Deadline(0.01, asyncio.Task.cancel):
            await asyncio.sleep(10)

    with pytest.raises(DeadlineError, match=r"not done within 0\.01 s"):
        asyncio.run(main())


def test_in_time_is_untouched() -> None:
    """What ends in time is not cancelled afterwards."""

    async def main() -> str:
        with Deadline(0.01, asyncio.Task.cancel):
            await asyncio.sleep(0)
        await asyncio.sleep(0.03)
        return "done"

    assert "done" == asyncio.run(main())


def test_somebody_elses_cancellation_stays_one() -> None:
    """A client that left is not told of a deadline."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.01, task.cancel)
        with Deadline(0.02, lambda task: False):
            await asyncio.sleep(0.1)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())


def test_finishing_keeps_the_text_so_far() -> None:
    """The generation is ended from outside, and nothing is cancelled."""
    ended: list[str] = []

    async def main() -> None:
        done = asyncio.Event()

        def finish() -> None:
            ended.append("text so far")
            done.set()

        with Deadline(0.01, asyncio.Task.cancel, finish):
            await done.wait()

    asyncio.run(main())
    assert ["text so far"] == ended


def test_what_does_not_finish_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not come out with its text is not waited for."""
    monkeypatch.setattr(deadline, "_GRACE", 0.01)

    async def main() -> None:
        with Deadline(0.01, asyncio.Task.cancel, lambda: None):
            await asyncio.sleep(10)

    with pytest.raises(DeadlineError):
        asyncio.run(main())


def test_no_deadline_is_no_timer() -> None:
    """Without a limit nothing is scheduled, and errors pass."""

    def nothing(_: Any) -> None:
        with NoDeadline():
            raise KeyError

    with pytest.raises(KeyError):
        nothing(None)

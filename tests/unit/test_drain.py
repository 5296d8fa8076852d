"""What the drain does to requests: those that run get their time, new ones are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from triton_vllm.errors import UnavailableError
from triton_vllm.limits.admission import OPENAI, TRITON, Admission
from triton_vllm.limits.drain import Drain
from triton_vllm.topology.load_balancing import NoLoadBalancer


async def serve(admission: Admission, api: str, seconds: float) -> str:
    """Be live for some seconds; return how that ended."""
    try:
        with admission.admit(api):
            await asyncio.sleep(seconds)
    except UnavailableError as why:
        return str(why)
    return "finished"


def make(**seconds: float) -> tuple[Admission, Drain]:
    admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
    return admission, Drain(admission, seconds, "vllm")


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, 30))


def test_what_runs_may_finish_until_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    """A short request finishes, a long one is ended with the reason, a new one refused.

    Each API has a time of its own.
    """
    admission, drain = make(**{TRITON: 0.5, OPENAI: 0.1})

    async def main() -> list[str]:
        how = [(TRITON, 60), (TRITON, 0.2), (OPENAI, 0.2), (OPENAI, 0.01)]
        tasks = [asyncio.create_task(serve(admission, api, s)) for api, s in how]
        await asyncio.sleep(0)
        drain.begin()
        with pytest.raises(UnavailableError, match="unloaded or the server stopped"):
            admission.check()
        return await asyncio.gather(*tasks)

    why = "the model is being unloaded or the server stopped, and {} s of grace are over"
    assert [why.format(0.5), "finished", why.format(0.1), "finished"] == run(main())
    reason = "the model is being unloaded or the server stopped"
    expected = [
        f"vllm: {reason}: 4 requests may run for 0.5 s more",
        f"vllm: 1 OpenAI requests aborted: {reason}",
        f"vllm: 1 requests aborted: {reason}",
    ]
    assert expected == caplog.messages


def test_a_server_that_is_ready_again_cancels_the_drain() -> None:
    """Nothing is ended, and new requests are admitted; the next drain has all its time again."""
    admission, drain = make(**{TRITON: 0.05})

    async def main() -> None:
        request = asyncio.create_task(serve(admission, TRITON, 0.2))
        await asyncio.sleep(0)
        drain.begin()
        drain.cancel()
        assert "finished" == await request
        admission.check()
        drain.begin()
        assert pytest.approx(0.05, abs=0.04) == drain.time_left(TRITON)

    run(main())


def test_a_drain_that_has_begun_goes_on() -> None:
    """``finalize`` comes when some of the time is over: it adds none."""
    _, drain = make(**{TRITON: 0.2})

    async def main() -> None:
        drain.begin()
        await asyncio.sleep(0.1)
        drain.begin(final=True)
        assert drain.time_left(TRITON) <= 0.1

    run(main())


def test_a_final_drain_is_not_cancelled() -> None:
    """The server may be ready with another instance of the model."""
    admission, drain = make(**{TRITON: 60.0})

    async def main() -> None:
        drain.begin(final=True)
        drain.cancel()
        with pytest.raises(UnavailableError):
            admission.check()

    run(main())


def test_a_drain_that_is_over_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time of every API is over; the model cannot come back then."""
    monkeypatch.setattr("triton_vllm.limits.drain._END_SECONDS", 0.1)
    monkeypatch.setattr("triton_vllm.limits.drain._LEAST_SECONDS", 0.0)
    admission, drain = make(**{TRITON: 0.2, OPENAI: 0.1})
    told: list[int] = []

    async def main() -> None:
        over = asyncio.Event()

        def tell() -> None:
            told.append(admission.count())
            over.set()

        drain.on_over = tell
        request = asyncio.create_task(serve(admission, TRITON, 60))
        await asyncio.sleep(0)
        drain.begin()
        await request
        assert [] == told
        await over.wait()
        drain.cancel()
        with pytest.raises(UnavailableError):
            admission.check()
        drain.begin()
        await asyncio.sleep(0.5)
        assert [0] == told

    run(main())


def test_a_drain_that_is_cancelled_is_never_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of a model that is ready again runs on."""
    monkeypatch.setattr("triton_vllm.limits.drain._END_SECONDS", 0.0)
    monkeypatch.setattr("triton_vllm.limits.drain._LEAST_SECONDS", 0.0)
    _, drain = make(**{TRITON: 0.05})
    told: list[bool] = []
    drain.on_over = lambda: told.append(True)

    async def main() -> None:
        drain.begin()
        drain.cancel()
        await asyncio.sleep(0.2)

    run(main())
    assert [] == told


def test_it_says_for_how_long_it_has_run() -> None:
    """What the engine's end may take depends on it; a drain that was cancelled took nothing."""
    _, drain = make(**{TRITON: 5.0})

    async def main() -> list[float]:
        seconds = [drain.seconds_since_begin]
        drain.begin()
        await asyncio.sleep(0.05)
        seconds.append(drain.seconds_since_begin)
        drain.cancel()
        return [*seconds, drain.seconds_since_begin]

    before, running, after = run(main())
    assert (0, 0) == (before, after)
    assert 0.04 < running < 5

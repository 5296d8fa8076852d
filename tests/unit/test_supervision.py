"""How an engine's death is told, and how the engine comes back, with lives that are made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_vllm.engine.run import EngineLife
from triton_vllm.engine.supervisor import Supervisor
from triton_vllm.errors import EngineDownError, ServingError
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.topology.front_ends import SingleFrontEnd
from triton_vllm.topology.stub_process import EngineErrors


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLoopThread]:
    """An event loop, for tries that follow each other at once."""
    monkeypatch.setattr("triton_vllm.engine.restarts._LONGEST_WAIT", 0.0)
    loop = EventLoopThread("engine")
    yield loop
    loop.stop()


@pytest.fixture
def errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineErrors:
    """What the engine's processes have logged: nothing."""
    monkeypatch.setenv("TRITON_VLLM_ERRORS", "")
    errors = EngineErrors(tmp_path)
    errors.clear()
    return errors


class Follower(SingleFrontEnd):
    """A front end that is not the leader."""

    is_leader = False
    index, count = 1, 2


class Lives:
    """A supervisor, and the lives that it begins: each item of ``ends`` is what a start raises."""

    def __init__(
        self,
        loop: EventLoopThread,
        errors: EngineErrors,
        monkeypatch: pytest.MonkeyPatch,
        *,
        restarts: int = 3,
        slot: SingleFrontEnd | None = None,
        ends: tuple[Exception, ...] = (),
    ) -> None:
        self.told: list[ServingError] = []
        self.lives: list[FakeLife] = []
        self.ends = iter(ends)
        self.loop = loop
        launch: Any = SimpleNamespace(
            slot=slot or SingleFrontEnd(),
            errors=errors,
            cluster=SimpleNamespace(close=lambda: None),
        )

        def live(launch: Any, loop: EventLoopThread, on_death: Callable[[Any], None]) -> FakeLife:
            failure = next(self.ends, None) if self.lives else None
            self.lives.append(FakeLife(on_death, failure))
            return self.lives[-1]

        monkeypatch.setattr("triton_vllm.engine.supervisor.EngineLife", live)
        self.supervisor = Supervisor(
            launch,
            loop,
            "vllm",
            restarts,
            begun=self.nothing_but_a_life,
            died=self.told.append,
            ending=self.nothing,
        )
        loop.call(self.supervisor.begin())

    async def nothing_but_a_life(self, life: Any) -> None:
        """Serve it."""

    async def nothing(self) -> None:
        """End nothing."""

    def kill(self, failure: str = "process 7") -> None:
        """Let the life that is end; return when it has been noticed."""

        async def die() -> None:
            self.lives[-1].die(failure)

        self.loop.call(die())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


class FakeLife:
    """A life of no engine."""

    addresses = None

    def __init__(self, on_death: Callable[[Any], None], failure: Exception | None) -> None:
        self.failure = ""
        self._on_death = on_death
        self._start_fails = failure

    async def begin(self, died: Any) -> None:
        """Start, or fail to."""
        if self._start_fails is not None:
            raise self._start_fails

    async def lasts(self, work: Coroutine[Any, Any, None]) -> None:
        """Live on."""
        await work

    async def end_processes(self) -> None:
        """There are none."""

    def end(self) -> None:
        """Hold nothing."""

    def die(self, failure: str) -> None:
        """Fail."""
        self.failure = failure
        self._on_death(self)


def test_a_death_is_told_before_anything_is_restarted(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its cause, once; then another life serves."""
    lives = Lives(loop, errors, monkeypatch)
    lives.kill()
    assert ["the engine died (process 7) and is being restarted"] == [str(e) for e in lives.told]
    lives.until(lambda: lives.supervisor.down is None)
    assert (1, 2, False) == (
        lives.supervisor.restarts,
        len(lives.lives),
        lives.supervisor.restarts_exhausted,
    )


def test_without_a_try_it_is_told_as_well(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to wait for a restart."""
    lives = Lives(loop, errors, monkeypatch, restarts=0)
    lives.kill()
    assert ["the engine died (process 7)"] == [str(error) for error in lives.told]
    lives.until(lambda: lives.supervisor.restarts_exhausted)
    assert "the engine died (process 7)" == str(lives.supervisor.down)
    assert 1 == len(lives.lives)


def test_a_follower_whose_leader_gives_up_waits_no_more(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it does so when the follower has just begun to."""
    slot = Follower()
    lives = Lives(loop, errors, monkeypatch, slot=slot)

    async def exhaust() -> None:
        slot.restarts_exhausted = True

    monkeypatch.setattr(FakeLife, "end_processes", lambda self: exhaust())
    lives.kill()
    assert "and is being restarted" in str(lives.told[0])
    lives.until(lambda: lives.supervisor.restarts_exhausted)
    assert "the engine died (process 7)" == str(lives.supervisor.down)


def test_the_cause_is_that_of_the_last_try(
    loop: EventLoopThread,
    errors: EngineErrors,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the engine died of before is another story."""
    failures = (OSError("no route to the other machine"), RuntimeError("disk\nfull"))
    lives = Lives(loop, errors, monkeypatch, restarts=2, ends=failures)
    (tmp_path / "errors.jsonl").write_text(f'[{time.time()}, "CUDA error"]\n')
    time.sleep(0.01)
    lives.kill()
    lives.until(lambda: lives.supervisor.restarts_exhausted)
    assert "the engine died and could not be restarted: disk full" == str(lives.supervisor.down)
    assert any("no restart: no route to" in line for line in caplog.messages)


def test_a_close_ends_the_tries(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is being unloaded: it has not given up."""
    lives = Lives(loop, errors, monkeypatch)
    lives.supervisor.close()
    lives.kill()
    loop.call(asyncio.sleep(0.1))
    assert (1, False) == (len(lives.lives), lives.supervisor.restarts_exhausted)


@pytest.fixture
def life(loop: EventLoopThread, errors: EngineErrors) -> EngineLife:
    """A real life, before it has begun."""

    async def live() -> EngineLife:
        launch: Any = SimpleNamespace(vllm=None, slot=SingleFrontEnd(), errors=errors)
        return EngineLife(launch, loop, lambda life: None)

    return loop.call(live())


def test_what_waits_for_a_dead_engine_is_ended(loop: EventLoopThread, life: EngineLife) -> None:
    """Such as a question of vLLM's that no engine will ever answer."""
    ended: list[str] = []

    async def ask() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("asking")

    async def die() -> None:
        lasting = asyncio.create_task(life.lasts(ask()))
        await asyncio.sleep(0.05)
        life._fail("process 7")
        with pytest.raises(EngineDownError, match=r"the engine died \(process 7\)"):
            await lasting

    loop.call(die(), timeout=10)
    assert ["asking"] == ended


def test_what_is_done_in_time_is_done(loop: EventLoopThread, life: EngineLife) -> None:
    """And what it raises is raised."""

    async def fail() -> None:
        raise KeyError("x")

    loop.call(life.lasts(asyncio.sleep(0)), timeout=10)
    with pytest.raises(KeyError):
        loop.call(life.lasts(fail()), timeout=10)


def test_a_long_cause_is_cut(loop: EventLoopThread, life: EngineLife, tmp_path: Path) -> None:
    """So that what is said after it, that the engine is being restarted, is still read."""
    (tmp_path / "errors.jsonl").write_text(f'[{time.time()}, "{"x" * 2000}"]\n')

    async def die() -> None:
        life._fail("process 7")

    loop.call(die())
    assert 490 < len(life.failure) < 520

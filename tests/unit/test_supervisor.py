"""How an engine's death is told, and how the engine comes back, with runs that are made up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_vllm.config.lora import NoAdapters
from triton_vllm.config.settings import ServingSettings
from triton_vllm.engine.run import EngineRun
from triton_vllm.engine.supervisor import Supervisor
from triton_vllm.errors import EngineDownError, ServingError
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.openai_api.server import NoOpenAIServer
from triton_vllm.topology.fork_server import NoForkServer
from triton_vllm.topology.front_ends import FrontEndSlot
from triton_vllm.topology.load_balancing import NoLoadBalancer
from triton_vllm.topology.nodes import SingleNode
from triton_vllm.topology.stub_process import EngineErrors
from triton_vllm.vllm_api import api as vllm_api


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLoopThread]:
    """An event loop, for tries that follow each other at once."""
    monkeypatch.setattr("triton_vllm.engine.supervisor._LONGEST_WAIT", 0.0)
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


def slot_of(errors: EngineErrors, index: int = 0, count: int = 1) -> FrontEndSlot:
    """Return a slot in the folder of ``errors``, which nobody has claimed."""
    held: Any = None
    return FrontEndSlot(errors._path.parent, index, count, held)


class FakeLLM:
    """As much of ``GuardedLLM`` as is attached to."""


class FakeRun:
    """A run of no engine: each item of ``failures`` is what a start raises, after the first."""

    addresses = None

    def __init__(self, on_failure: Callable[[Any], None]) -> None:
        self.failure = ""
        self.llm = FakeLLM()
        self.renderers = SimpleNamespace(prepare=self._prepare)
        self._on_failure = on_failure

    async def _prepare(self, chat: Any) -> None:
        """Nothing to prepare."""

    async def until_failure(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on."""
        await work

    async def end_processes(self) -> None:
        """There are none."""

    def end(self) -> None:
        """Hold nothing."""

    def die(self, failure: str) -> None:
        """Fail."""
        self.failure = failure
        self._on_failure(self)


class Supervised:
    """A supervisor, the runs that it starts, and one live request at a time."""

    def __init__(
        self,
        loop: EventLoopThread,
        errors: EngineErrors,
        monkeypatch: pytest.MonkeyPatch,
        *,
        restarts: int = 3,
        slot: FrontEndSlot | None = None,
        failures: tuple[Exception, ...] = (),
    ) -> None:
        self.runs: list[FakeRun] = []
        self.told: list[ServingError] = []
        left = iter(failures)
        serving = ServingSettings(max_engine_restarts=restarts, grammar_compile_timeout_seconds=0)
        monkeypatch.setattr(vllm_api, "create_config", lambda args: None, raising=False)
        monkeypatch.setattr(vllm_api, "grammar_tokenizer", lambda llm: None, raising=False)
        plan: Any = SimpleNamespace(
            slot=slot or slot_of(errors),
            errors=errors,
            cluster=SimpleNamespace(close=lambda: None),
            fork_server=NoForkServer(),
            settings=SimpleNamespace(name="vllm", serving=serving),
            config=None,
            args=None,
            chat=None,
        )

        async def start(plan: Any, config: Any, loop: Any, adapters: Any, *rest: Any) -> FakeRun:
            if self.runs and (failure := next(left, None)):
                raise failure
            self.runs.append(FakeRun(rest[1]))
            return self.runs[-1]

        monkeypatch.setattr("triton_vllm.engine.supervisor.EngineRun", SimpleNamespace(start=start))
        monkeypatch.setattr(
            "triton_vllm.engine.supervisor.StructuredOutputsCheck",
            lambda *how, **more: SimpleNamespace(check=None),
        )
        self.loop = loop
        self.admission = Admission(0, 0, lambda: 0, NoLoadBalancer())

        async def make() -> Supervisor:
            return Supervisor(
                plan, loop, NoAdapters(), self.admission, NoOpenAIServer(), lambda: 10.0
            )

        self.supervisor = loop.call(make())
        loop.call(self.supervisor.start())
        loop.spawn(self._request())
        loop.call(asyncio.sleep(0.01))

    @property
    def down(self) -> str:
        """Why the engine does not serve."""
        return str(self.admission.down)

    async def _request(self) -> None:
        try:
            with self.admission.admit():
                await asyncio.sleep(60)
        except ServingError as why:
            self.told.append(why)

    def kill(self, failure: str = "process 7") -> None:
        """Let the run of now fail; return when that has been noticed."""

        async def die() -> None:
            self.runs[-1].die(failure)
            await asyncio.sleep(0.01)

        self.loop.call(die())

    def until(self, condition: Callable[[], object]) -> None:
        """Wait."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_death_is_told_before_anything_is_restarted(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its cause, once; then another life serves."""
    supervised = Supervised(loop, errors, monkeypatch)
    supervised.kill()
    assert ["the engine died (process 7) and is being restarted"] == [
        str(e) for e in supervised.told
    ]
    supervised.until(lambda: supervised.admission.down is None)
    assert (1, 2, False) == (
        supervised.supervisor.policy.restarts,
        len(supervised.runs),
        supervised.supervisor.restarts_exhausted,
    )


def test_without_a_try_it_is_told_as_well(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to wait for a restart."""
    supervised = Supervised(loop, errors, monkeypatch, restarts=0)
    supervised.kill()
    assert ["the engine died (process 7)"] == [str(error) for error in supervised.told]
    supervised.until(lambda: supervised.supervisor.restarts_exhausted)
    assert "the engine died (process 7)" == supervised.down
    assert 1 == len(supervised.runs)


def test_a_follower_whose_leader_gives_up_waits_no_more(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it does so when the follower has just begun to."""
    slot = slot_of(errors, 1, 2)
    monkeypatch.setattr(slot, "leader_lives", lambda: True)
    supervised = Supervised(loop, errors, monkeypatch, slot=slot)

    async def exhaust() -> None:
        slot_of(errors, 0, 2).announce_restarts_exhausted()

    monkeypatch.setattr(FakeRun, "end_processes", lambda self: exhaust())
    supervised.kill()
    assert "and is being restarted" in str(supervised.told[0])
    supervised.until(lambda: supervised.supervisor.restarts_exhausted)
    assert "the engine died (process 7)" == supervised.down


def test_the_cause_is_that_of_the_last_try(
    loop: EventLoopThread,
    errors: EngineErrors,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the engine died of before is another story."""
    failures = (OSError("no route to the other machine"), RuntimeError("disk\nfull"))
    supervised = Supervised(loop, errors, monkeypatch, restarts=2, failures=failures)
    (tmp_path / "errors.jsonl").write_text(f'[{time.time()}, "CUDA error"]\n')
    time.sleep(0.01)
    supervised.kill()
    supervised.until(lambda: supervised.supervisor.restarts_exhausted)
    assert "the engine died and could not be restarted: disk full" == supervised.down
    assert any("no restart: no route to" in line for line in caplog.messages)


def test_a_close_ends_the_tries(
    loop: EventLoopThread, errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is being unloaded: it has not given up."""
    supervised = Supervised(loop, errors, monkeypatch)
    supervised.supervisor.close()
    supervised.kill()
    loop.call(asyncio.sleep(0.1))
    assert (1, False) == (len(supervised.runs), supervised.supervisor.restarts_exhausted)


@pytest.fixture
def ended() -> list[float]:
    """The seconds that an engine had to end."""
    return []


@pytest.fixture
def run(
    loop: EventLoopThread,
    errors: EngineErrors,
    ended: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> EngineRun:
    """A real run of an engine without processes; ``ended`` gets the seconds that its end has."""
    monkeypatch.setattr(vllm_api, "engine_processes", lambda llm: [], raising=False)
    monkeypatch.setattr(
        vllm_api, "shut_down", lambda llm, timeout: ended.append(timeout), raising=False
    )
    monkeypatch.setattr(vllm_api, "has_failed", lambda llm: False, raising=False)

    async def make() -> EngineRun:
        slot, cluster = slot_of(errors), SingleNode()
        plan: Any = SimpleNamespace(slot=slot, errors=errors, cluster=cluster)
        llm = SimpleNamespace()
        renderers: Any = None
        held = contextlib.ExitStack()
        return EngineRun(plan, loop, llm, renderers, None, lambda run: None, lambda: 4.5, held)

    return loop.call(make())


def test_an_engine_has_the_time_that_is_left_when_it_ends(
    loop: EventLoopThread, run: EngineRun, ended: list[float]
) -> None:
    """Not that which was left when it started."""

    async def end() -> None:
        run.end()

    loop.call(end())
    assert [4.5] == ended


def test_what_waits_for_a_dead_engine_is_ended(loop: EventLoopThread, run: EngineRun) -> None:
    """Such as a question of vLLM's that no engine will ever answer."""
    ended: list[str] = []

    async def ask() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("asking")

    async def die() -> None:
        lasting = asyncio.create_task(run.until_failure(ask()))
        await asyncio.sleep(0.05)
        run._fail("process 7")
        with pytest.raises(EngineDownError, match=r"the engine died \(process 7\)"):
            await lasting

    loop.call(die(), timeout=10)
    assert ["asking"] == ended


def test_what_is_done_in_time_is_done(loop: EventLoopThread, run: EngineRun) -> None:
    """And what it raises is raised."""

    async def fail() -> None:
        raise KeyError("x")

    loop.call(run.until_failure(asyncio.sleep(0)), timeout=10)
    with pytest.raises(KeyError):
        loop.call(run.until_failure(fail()), timeout=10)


def test_a_long_cause_is_cut(loop: EventLoopThread, run: EngineRun, tmp_path: Path) -> None:
    """So that what is said after it, that the engine is being restarted, is still read."""
    (tmp_path / "errors.jsonl").write_text(f'[{time.time()}, "{"x" * 2000}"]\n')

    async def die() -> None:
        run._fail("process 7")

    loop.call(die())
    assert 490 < len(run.failure) < 520

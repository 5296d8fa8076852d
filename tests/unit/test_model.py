"""One request through ``model.py``: its stream is closed exactly once, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.fakes import FakeRequest, FakeSender, Sent, fake_pb_utils, logged
from triton_vllm.config.settings import ServingSettings
from triton_vllm.counters import LoopLag
from triton_vllm.engine.engine import Engine
from triton_vllm.errors import GenerationError, ServingError, UnavailableError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.cancellation import CancellationWatcher
from triton_vllm.limits.server_watch import NoWatch
from triton_vllm.openai_api.server import NoOpenAIServer
from triton_vllm.protocol.decode import Host
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.requests import Generation
from triton_vllm.protocol.stream import SenderPool
from triton_vllm.topology.load_balancing import NoLoadBalancer
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser


class PanicError(BaseException):
    """A panic of Rust's, as it comes out of pyo3: no Exception."""


async def _one_delta(_: Any) -> AsyncGenerator[Any, None]:
    yield Delta((" upon",), 1, final=True)


class FakeRenderers:
    """Renders what the engine below generates."""

    def __init__(self) -> None:
        self.outputs: Callable[[Any], AsyncGenerator[Any, None]] = _one_delta

    async def render(self, request: Any) -> Generation:
        return Generation(self.outputs, lambda output: output)


class FakeEngine(Engine):
    """An engine without vLLM: what it generates is ``renders.outputs``."""

    def __init__(self, parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.renders = FakeRenderers()
        aborted: list[str] = []

        async def abort(request_id: str) -> None:
            aborted.append(request_id)

        self.aborted = aborted
        monkeypatch.setattr(vllm_api, "to_serving_error", _to_serving_error, raising=False)
        monkeypatch.setattr(vllm_api, "came_with_outputs", lambda _: False, raising=False)
        plan = SimpleNamespace(
            balancer=NoLoadBalancer(),
            settings=SimpleNamespace(serving=ServingSettings()),
        )
        supervisor = SimpleNamespace(
            run=SimpleNamespace(renderers=self.renders, llm=SimpleNamespace(abort=abort))
        )
        super().__init__(
            plan=cast(Any, plan),
            loop=EventLoopThread("engine"),
            admission=Admission(0, 0, lambda: 0, plan.balancer),
            supervisor=cast(Any, supervisor),
            openai=NoOpenAIServer(),
            parser=parser,
            answers=AnswerCheck(),
            lag=LoopLag(),
            watch=NoWatch(),
            held=contextlib.ExitStack(),
        )

    def stop(self) -> None:
        self.loop.stop()


def _to_serving_error(error: Exception) -> ServingError:
    return error if isinstance(error, ServingError) else GenerationError(one_line(error))


@pytest.fixture
def engine(sampling: SamplingParser, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine(sampling, monkeypatch)
    yield engine
    engine.stop()


@pytest.fixture
def model(model_py: ModuleType, engine: FakeEngine) -> Iterator[Any]:
    """A TritonPythonModel around the engine."""
    model = model_py.TritonPythonModel()
    model._engine = engine
    model._host = Host()
    model._responses = SenderPool(fake_pb_utils, 1, 0, engine.loop.call_soon)
    model._cancellations = CancellationWatcher(0.01)
    yield model
    model._cancellations.stop()
    model._responses.stop(5)


def ask(
    model: Any, sender: FakeSender | None = None, request_id: str | bytes = "r-1", **inputs: Any
) -> list[Sent]:
    """Send one request; return its responses, once one of them is final."""
    sender = sender or FakeSender()
    request: Any = FakeRequest({"text_input": "Once"} | inputs, request_id=request_id)
    request.get_response_sender = lambda: sender
    model.execute([request])
    deadline = time.monotonic() + 10
    while not (sender.sent and sender.sent[-1].final):
        assert time.monotonic() < deadline, "no FINAL flag"
        time.sleep(0.005)
    return sender.sent


def test_a_request_is_answered(model: Any) -> None:
    """One that goes well, to see that the others below could."""
    (sent,) = ask(model, exclude_input_in_output=True)
    assert Sent((" upon",), final=True) == sent


def test_what_is_handed_over_is_sent_before_what_is_yielded(model: Any, engine: FakeEngine) -> None:
    """In its order; the last output comes from the generator."""

    async def outputs(take: Callable[[Any], None]) -> AsyncGenerator[Any, None]:
        take(Delta((" upon",), 1))
        take(Delta((" a",), 1))
        await asyncio.sleep(0)
        yield Delta((" time",), 1, final=True)

    engine.renders.outputs = outputs
    sent = ask(model, exclude_input_in_output=True, stream=True)
    assert " upon a time" == "".join(each.texts[0] for each in sent)
    assert [True] == [each.final for each in sent if each.final]


@pytest.mark.parametrize(
    "error", [PanicError("byte index 3 is out of bounds"), SystemExit(3), KeyboardInterrupt()]
)
def test_what_is_no_exception_is_answered_too(
    model: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Without a FINAL flag the client would hang, and the model could never be unloaded."""

    async def fail(_: Any) -> AsyncGenerator[Any, None]:
        raise error
        yield

    engine.renders.outputs = fail
    (sent,) = ask(model)
    assert ("INTERNAL", True) == (sent.status, sent.final)
    assert type(error).__name__ in sent.error
    assert any(level == "ERROR" and sent.error in line for level, line in logged(caplog))
    engine.renders.outputs = _one_delta
    assert not ask(model)[-1].error
    assert 0 == engine.admission.count()


def test_a_panic_while_decoding_is_answered(
    model: Any, monkeypatch: pytest.MonkeyPatch, sampling: SamplingParser
) -> None:
    """pydantic, which checks the parameters, is Rust as well."""

    def parse(*_: Any, **__: Any) -> Any:
        raise PanicError("in Rust")

    monkeypatch.setattr(sampling, "parse", parse)
    (sent,) = ask(model)
    assert ("INTERNAL", "PanicError: in Rust") == (sent.status, sent.error)


def test_an_undecodable_request_id_is_an_error_of_one_line(model: Any) -> None:
    """The handler of errors reads the id, too, and must not fail of it."""
    (sent,) = ask(model, request_id=b"a\xff", sampling_parameters="{}")
    assert ("INVALID_ARG", "id: not UTF-8: byte 0xff at offset 1") == (sent.status, sent.error)


def test_an_error_that_cannot_be_explained_is_answered(
    model: Any, monkeypatch: pytest.MonkeyPatch, engine: FakeEngine
) -> None:
    """Whatever fails while an error is told, the client gets one with the FINAL flag."""

    def explain(*_: Any) -> Any:
        raise UnicodeError("no words")

    monkeypatch.setattr(engine, "to_serving_error", explain)
    (sent,) = ask(model, temperature="x", nonsense="y")
    assert ("INTERNAL", "RequestError, not explained: no words") == (sent.status, sent.error)


def test_a_client_that_cancels_is_told_so(model: Any, engine: FakeEngine) -> None:
    """A cancellation is no failure."""

    async def wait(_: Any) -> AsyncGenerator[Any, None]:
        client.cancelled = True
        await asyncio.sleep(60)
        yield

    client = FakeSender()
    engine.renders.outputs = wait
    assert "CANCELLED" == ask(model, client)[-1].status


async def _never(_: Any) -> AsyncGenerator[Any, None]:
    await asyncio.sleep(60)
    yield


def test_a_timeout_is_answered_in_words(model: Any, engine: FakeEngine) -> None:
    """With the limit that has passed."""
    engine.renders.outputs = _never
    (sent,) = ask(model, sampling_parameters='{"timeout_seconds": 0.05}')
    assert ("UNAVAILABLE", "request timed out after 0.05 s") == (sent.status, sent.error)


def test_a_request_may_ask_for_the_text_so_far(model: Any, engine: FakeEngine) -> None:
    """At its timeout the engine is asked to end it."""

    async def until_aborted(_: Any) -> AsyncGenerator[Any, None]:
        while not engine.aborted:  # noqa: ASYNC110 (the fake's list)
            await asyncio.sleep(0.01)
        yield Delta((" upon",), 1, final=True)

    engine.renders.outputs = until_aborted
    parameters = '{"timeout_seconds": 0.05, "on_timeout": "finish"}'
    (sent,) = ask(model, sampling_parameters=parameters, exclude_input_in_output=True)
    assert Sent((" upon",), final=True) == sent
    assert [True] == [request_id.startswith("r-1") for request_id in engine.aborted]


@pytest.mark.parametrize("reason", ["drained", "the engine died"])
def test_whatever_ends_a_request_is_what_its_client_gets(
    model: Any, engine: FakeEngine, reason: str
) -> None:
    """At a drain and at a death."""

    async def end(_: Any) -> AsyncGenerator[Any, None]:
        loop = asyncio.get_running_loop()
        loop.call_soon(engine.admission.end_all, UnavailableError(reason))
        await asyncio.sleep(60)
        yield

    engine.renders.outputs = end
    (sent,) = ask(model)
    assert ("UNAVAILABLE", reason) == (sent.status, sent.error)


def test_a_request_that_arrives_while_the_engine_is_down_is_answered(
    model: Any, engine: FakeEngine
) -> None:
    """One that was accepted before, and whose coroutine starts after."""
    engine.loop.call(_set_down_then_serve(model, engine))


async def _set_down_then_serve(model: Any, engine: FakeEngine) -> None:
    sender = FakeSender()
    request: Any = FakeRequest({"text_input": "Once"}, request_id="r-2")
    request.get_response_sender = lambda: sender
    model.execute([request])  # its coroutine has not had its first step
    engine.admission.down = UnavailableError("the engine died")
    engine.admission.end_all(engine.admission.down)
    while not sender.sent:  # noqa: ASYNC110 (a sender thread)
        await asyncio.sleep(0.01)
    assert ("UNAVAILABLE", "the engine died", True) == (
        sender.sent[0].status,
        sender.sent[0].error,
        sender.sent[0].final,
    )

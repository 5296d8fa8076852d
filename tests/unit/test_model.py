"""One request through ``model.py``: its stream is closed exactly once, whatever happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.unit.fakes import FakeRequest, FakeSender, Sent, fake_pb_utils, logged
from triton_vllm.config.settings import ServingSettings
from triton_vllm.engine.engine import Engine
from triton_vllm.errors import GenerationError, ServingError, one_line
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import Admission
from triton_vllm.protocol.cancellation import CancellationWatcher
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.generation import Generation
from triton_vllm.protocol.host import Host
from triton_vllm.protocol.stream import SenderPool
from triton_vllm.vllm_api.sampling_parameters import SamplingParser


class PanicError(BaseException):
    """A panic of Rust's, as it comes out of pyo3: no Exception."""


async def _one_delta() -> AsyncGenerator[Any, None]:
    yield Delta((" upon",), 1, final=True)


class FakeEngine(Engine):
    """An engine without vLLM: what it generates is ``outputs``."""

    def __init__(self, parser: Any) -> None:
        self.outputs: Callable[[], AsyncGenerator[Any, None]] = _one_delta
        self.parser = parser
        self.admission = Admission(0, 0, lambda: 0)
        self._loop = EventLoopThread("engine")
        self._settings: Any = SimpleNamespace(serving=ServingSettings())
        self._supervisor: Any = SimpleNamespace(down=None)
        self._drain: Any = SimpleNamespace(ended=None)
        nothing = lambda: None  # noqa: E731
        self._balancer: Any = SimpleNamespace(
            accepted=nothing, finished=nothing, backpressure=nothing
        )
        self._vllm: Any = SimpleNamespace(explain=_explain, came_with_outputs=lambda _: False)

    async def render(self, request: Any) -> Generation:
        return Generation(self.outputs, lambda output: output)

    def stop(self) -> None:
        self._loop.stop()


def _explain(error: Exception) -> ServingError:
    return error if isinstance(error, ServingError) else GenerationError(one_line(error))


@pytest.fixture
def engine(sampling: SamplingParser) -> Iterator[FakeEngine]:
    engine = FakeEngine(sampling)
    yield engine
    engine.stop()


@pytest.fixture
def model(model_py: ModuleType, engine: FakeEngine) -> Iterator[Any]:
    """A TritonPythonModel around the engine."""
    model = model_py.TritonPythonModel()
    model._engine = engine
    model._host = Host()
    model._responses = SenderPool(fake_pb_utils, 1, 0)
    model._cancellations = CancellationWatcher(0.01, engine.cancel)
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


@pytest.mark.parametrize(
    "error", [PanicError("byte index 3 is out of bounds"), SystemExit(3), KeyboardInterrupt()]
)
def test_what_is_no_exception_is_answered_too(
    model: Any, engine: FakeEngine, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Without a FINAL flag the client would hang, and the model could never be unloaded."""

    async def fail() -> AsyncGenerator[Any, None]:
        raise error
        yield

    engine.outputs = fail
    (sent,) = ask(model)
    assert ("INTERNAL", True) == (sent.status, sent.final)
    assert type(error).__name__ in sent.error
    assert any(level == "ERROR" and sent.error in line for level, line in logged(caplog))
    engine.outputs = _one_delta
    assert not ask(model)[-1].error
    assert 0 == engine.admission.live


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

    monkeypatch.setattr(engine, "explain", explain)
    (sent,) = ask(model, temperature="x", nonsense="y")
    assert ("INTERNAL", "RequestError, not explained: no words") == (sent.status, sent.error)


def test_a_client_that_cancels_is_told_so(model: Any, engine: FakeEngine) -> None:
    """A cancellation is no failure."""

    async def wait() -> AsyncGenerator[Any, None]:
        client.cancelled = True
        await asyncio.sleep(60)
        yield

    client = FakeSender()
    engine.outputs = wait
    assert "CANCELLED" == ask(model, client)[-1].status

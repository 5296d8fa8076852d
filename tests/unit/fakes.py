"""Stand-ins for Triton's ``pb_utils`` and for ``vllm_api``, as small as the tests allow.

Triton's counterpart is tests/e2e, vLLM's is tests/contract.
"""

from __future__ import annotations

import argparse
import enum
import json
import threading
import time
import typing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest

from triton_vllm.counters import LoopLag, Traffic
from triton_vllm.errors import one_line
from triton_vllm.protocol.requests import GenerationRequest, TextPrompt

FINAL = 1


def at_once(function: Callable[[], None]) -> None:
    """In place of an event loop's ``call_soon``: nothing waits for the end of a turn."""
    function()


class FakeLogger:
    """``pb_utils.Logger``, remembering (level, line)."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def log_info(self, message: str) -> None:
        self._log("info", message)

    def log_warn(self, message: str) -> None:
        self._log("warn", message)

    def log_error(self, message: str) -> None:
        self._log("error", message)

    def _log(self, level: str, message: str) -> None:
        message.encode()  # fails where the real one fails
        self.lines.append((level, message))


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what has been logged: level and line."""
    return [(record.levelname, record.getMessage()) for record in caplog.records]


class FakeTensor:
    """``pb_utils.Tensor``."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


@dataclass(frozen=True)
class FakeTritonError:
    """``pb_utils.TritonError``; the status codes are their own names."""

    text: str
    code: str
    INVALID_ARG: ClassVar[str] = "INVALID_ARG"
    UNAVAILABLE: ClassVar[str] = "UNAVAILABLE"
    CANCELLED: ClassVar[str] = "CANCELLED"
    INTERNAL: ClassVar[str] = "INTERNAL"

    def __post_init__(self) -> None:
        self.text.encode()  # fails where the real one fails


@dataclass(frozen=True)
class FakeResponse:
    """``pb_utils.InferenceResponse``."""

    output_tensors: Sequence[FakeTensor]
    error: FakeTritonError | None = None


class FakeMetric:
    """``pb_utils.Metric``: its value, and the threads that touched it."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.value = 0.0
        self.threads: set[str] = set()
        self.calls = 0

    def increment(self, value: float) -> None:
        assert value > 0, "Triton refuses to decrement a counter"
        self._touched()
        self.value += value

    def set(self, value: float) -> None:
        self._touched()
        self.value = value

    def _touched(self) -> None:
        self.calls += 1
        self.threads.add(threading.current_thread().name)


class FakeFamilies:
    """``pb_utils.MetricFamily``, remembering every family that was made."""

    COUNTER = "counter"
    GAUGE = "gauge"

    def __init__(self) -> None:
        self.made: dict[str, tuple[str, list[FakeMetric]]] = {}

    def __call__(self, *, name: str, description: str, kind: str) -> Any:
        assert name not in self.made, "Triton takes each family once"
        assert description
        metrics: list[FakeMetric] = []
        self.made[name] = (kind, metrics)

        def metric(labels: dict[str, str]) -> FakeMetric:
            metrics.append(FakeMetric(labels))
            return metrics[-1]

        return SimpleNamespace(Metric=metric)

    def value(self, name: str, **labels: str) -> float:
        (metric,) = (m for m in self.made[name][1] if labels.items() <= m.labels.items())
        return metric.value


def counted_engine(index: int = 0, *, leads: bool = True, **changes: Any) -> Any:
    """Return what the metrics read of a front end's ``Engine``, with changes."""
    counts = {
        "plan": SimpleNamespace(
            slot=SimpleNamespace(index=index, is_leader=leads, occupied=lambda: 4)
        ),
        "openai": SimpleNamespace(traffic=Traffic()),
        "answers": SimpleNamespace(found=Counter()),
        "lag": LoopLag(),
        "is_up": True,
        "restarts": 0,
        "restarts_exhausted": False,
    }
    return SimpleNamespace(**(counts | changes))


fake_pb_utils = SimpleNamespace(
    Tensor=FakeTensor,
    TritonError=FakeTritonError,
    InferenceResponse=FakeResponse,
    TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    Logger=FakeLogger(),
)


@dataclass(frozen=True)
class Sent:
    """One response as a client sees it."""

    texts: tuple[str, ...] = ()
    final: bool = False
    status: str = ""
    error: str = ""
    output: str = "text_output"
    counts: tuple[int, ...] = ()


class FakeSender:
    """``pb_utils.InferenceResponseSender``.

    Raises the exceptions of ``failures``, one at each send, before it works. Like the real one, it
    is closed by a send with the FINAL flag even when that fails, and refuses all that follows.
    Notes when it is asked for a cancellation after that, which crashes the real server.
    """

    def __init__(self, failures: Sequence[Exception] = (), *, slow: float = 0.0) -> None:
        self.sent: list[Sent] = []
        self.asked_too_late = False
        self.cancelled = False
        self.closed = threading.Event()
        self._failures = list(failures)
        self._slow = slow

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:
        final = flags == FINAL
        if self.closed.is_set():
            raise RuntimeError("Response sender has been closed.")
        if final:
            self.closed.set()
        time.sleep(self._slow)
        if self._failures:
            raise self._failures.pop(0)
        if response is None:
            self.sent.append(Sent((), final, output=""))
            return
        if response.error is not None:
            self.sent.append(Sent((), final, response.error.code, response.error.text, ""))
            return
        tensor, *others = response.output_tensors
        texts = tuple(text.decode() for text in tensor.as_numpy())
        counts = tuple(int(count) for other in others for count in other.as_numpy())
        self.sent.append(Sent(texts, final, output=tensor.name(), counts=counts))

    def is_cancelled(self) -> bool:
        time.sleep(self._slow)
        self.asked_too_late = self.asked_too_late or self.closed.is_set()
        return self.cancelled


class FakeRequest:
    """``pb_utils.InferenceRequest``. Inputs are given as name=value or name=[values]."""

    def __init__(
        self,
        inputs: dict[str, Any],
        *,
        request_id: str | bytes = "",
        outputs: Sequence[str] = ("text_output", "TEXT"),
        parameters: str | bytes = "",
        trace_context: str | None = None,
        timeout: int = 0,
    ) -> None:
        self._timeout = timeout
        self._trace_context = trace_context
        self._inputs = [FakeTensor(name, _array(value)) for name, value in inputs.items()]
        self._request_id = request_id
        self._outputs = list(outputs)
        self._parameters = parameters

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def request_id(self) -> str:
        return _text(self._request_id)

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def parameters(self) -> str:
        return _text(self._parameters)

    def timeout(self) -> int:
        return self._timeout

    def trace(self) -> Any:
        return SimpleNamespace(get_context=lambda: self._trace_context)


def _text(value: str | bytes) -> str:
    """Return a text of Triton's, decoded when it is read, as pybind11 does."""
    return value.decode() if isinstance(value, bytes) else value


def _array(value: Any) -> np.ndarray[Any, Any]:
    values = value if isinstance(value, list) else [value]
    encoded = [v.encode() if isinstance(v, str) else v for v in values]
    kinds = {type(v) for v in values}
    dtype: Any = np.bool_ if kinds == {bool} else np.int64 if kinds == {int} else np.object_
    return np.array(encoded, dtype=dtype)


def generation_request(**changes: Any) -> GenerationRequest:
    """Return a plain streamed request, with changes."""
    values: dict[str, Any] = {
        "request_id": "r-1",
        "prompt": TextPrompt("Once"),
        "stream": True,
        "sampling_params": FakeSamplingParams(),
    }
    return GenerationRequest(**(values | changes))


class FakeOutputKind(enum.Enum):
    """``vllm.sampling_params.RequestOutputKind``."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class FakeStructuredOutputs:
    """``StructuredOutputsParams``: what stands for a field that is an object."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None


@dataclass
class FakeSamplingParams:
    """``SamplingParams``, a field of each type."""

    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    structured_outputs: FakeStructuredOutputs | None = None
    output_kind: FakeOutputKind = FakeOutputKind.CUMULATIVE
    skip_clone: bool = False
    output_text_buffer_length: int = 0

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature must be non-negative, got {self.temperature}.")


@dataclass
class FakePoolingParams:
    """``PoolingParams``, what clients may send of it, and what not."""

    use_activation: bool | None = None
    dimensions: int | None = None
    requires_token_ids: bool = False


@dataclass
class FakeEngineArgs:
    """``AsyncEngineArgs``, a field of each type."""

    model: str = "some/default"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.92
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    enable_log_requests: bool = False
    disable_log_stats: bool = False
    dtype: str = "auto"
    served_model_name: str | list[str] | None = None
    hf_overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_cli_args(cls, namespace: argparse.Namespace) -> FakeEngineArgs:
        return cls(**{f.name: getattr(namespace, f.name) for f in fields(cls)})


class FakeEngineArgsParser(argparse.ArgumentParser):
    """``vllm_api.EngineArgsParser``."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)

    @classmethod
    def create(cls) -> FakeEngineArgsParser:
        parser = cls(add_help=False)
        boolean = {"action": argparse.BooleanOptionalAction}
        kinds: dict[str, dict[str, Any]] = {
            "model": {"type": str},
            "max_model_len": {"type": human_readable_int},
            "max_num_seqs": {"type": int},
            "gpu_memory_utilization": {"type": float},
            "enforce_eager": boolean,
            "enable_prefix_caching": boolean,
            "enable_log_requests": boolean,
            "disable_log_stats": boolean,
            "dtype": {"type": str, "choices": ["auto", "bfloat16", "float32"]},
            "served_model_name": {"type": str, "nargs": "+"},
            "hf_overrides": {"type": json.loads},
        }
        defaults = FakeEngineArgs()
        for name, kind in kinds.items():
            option = "--" + name.replace("_", "-")
            parser.add_argument(option, default=getattr(defaults, name), **kind)
        return parser


def human_readable_int(text: str) -> int:
    """Read 8k as 8000, as vLLM does."""
    return int(text[:-1]) * 1000 if text.endswith("k") else int(text)


def fake_vllm_api() -> SimpleNamespace:
    """Return what ``triton_vllm.vllm_api`` offers to ``sampling`` and ``engine_args``."""
    return SimpleNamespace(
        version=lambda: "9.9.9",
        as_keys=lambda error, _="": one_line(error),
        why_wrong=one_line,
        SamplingParams=FakeSamplingParams,
        RequestOutputKind=FakeOutputKind,
        PoolingParams=FakePoolingParams,
        param_types=typing.get_type_hints,
        AsyncEngineArgs=FakeEngineArgs,
        EngineArgsParser=FakeEngineArgsParser,
        beam_search_names=lambda: frozenset({"n", "max_tokens", "temperature", "use_beam_search"}),
        engine_arg_types=lambda: typing.get_type_hints(FakeEngineArgs),
    )

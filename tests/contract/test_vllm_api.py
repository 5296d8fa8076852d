"""The one file that knows vLLM, against the vLLM at hand."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from vllm import exceptions as vllm_exceptions
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.core_client import BackgroundResources
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from triton_vllm.errors import CancelledError, RequestError, UnavailableError
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.guard import GuardedLLM, check_pairs


def caused_by(cause: Exception) -> Exception:
    error: Exception = EngineGenerateError()
    error.__cause__ = cause
    return error


def test_the_version_is_a_supported_one() -> None:
    """The environment holds a vLLM from 0.26 to 0.33."""
    found = re.match(r"(\d+)\.(\d+)", vllm_api.version())
    assert found
    assert (0, 26) <= tuple(int(part) for part in found.groups()) < (0, 34)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineDeadError(), "UNAVAILABLE"),
        (ValueError("too long"), "INVALID_ARG"),
        (TypeError("no list"), "INVALID_ARG"),
        (vllm_exceptions.VLLMValidationError("too long", parameter="n", value=0), "INVALID_ARG"),
        (caused_by(ValueError("too long")), "INVALID_ARG"),
        (caused_by(EngineDeadError()), "UNAVAILABLE"),
        (EngineGenerateError("lost"), "INTERNAL"),
        (RuntimeError("out of memory"), "INTERNAL"),
        (CancelledError("left"), "CANCELLED"),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"), "INVALID_ARG"),
    ],
    ids=[
        "engine dead",
        "value",
        "type",
        "validation",
        "wrapped value",
        "wrapped death",
        "generation",
        "anything else",
        "ours",
        "half of a surrogate pair",
    ],
)
def test_errors_are_mapped_to_statuses(error: Exception, expected: str) -> None:
    """Each error that vLLM raises for a request gets the status by which a client can decide."""
    explained = vllm_api.to_serving_error(error)
    assert expected == explained.status
    assert str(explained)
    assert "codec" not in str(explained)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no flag - here, a--b --no-such", "no flag - here, a--b --no-such"),
        ("needs --max-logprobs", 'needs "max_logprobs" in vllm_engine_args.json'),
        (
            "--enable-auto-tool-choice and --runner to be set",
            '"enable_auto_tool_choice" and "runner" in vllm_engine_args.json to be set',
        ),
    ],
)
def test_a_flag_in_vllms_words_becomes_a_key(text: str, expected: str) -> None:
    """There is no command line here; the operator has a file."""
    assert expected == str(vllm_api.to_serving_error(ValueError(text)))


@pytest.mark.parametrize("name", ["QueueOverflowError", "MaxQueuedTokensError"])
def test_overload_is_unavailable(name: str) -> None:
    """Where this vLLM refuses requests for load, the client may try again."""
    if not hasattr(vllm_exceptions, name):
        pytest.skip(f"this vLLM has no {name}")
    assert "UNAVAILABLE" == vllm_api.to_serving_error(getattr(vllm_exceptions, name)()).status


def test_an_unexpected_errors_class_is_named() -> None:
    """An unexpected error keeps the name of its class."""
    assert "RuntimeError: lost" == str(vllm_api.to_serving_error(RuntimeError("lost")))


def test_every_grammar_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each grammar is checked before the engine sees it. Other requests pass unchanged."""
    assert ["self", "request_id", "prompt", "params"] == list(
        inspect.signature(vllm_api.AsyncLLM.add_request).parameters
    )[:4]
    added: list[Any] = []

    async def add_request(self: object, *args: object, **kwargs: object) -> None:
        added.append((args, kwargs))

    async def refuse(grammar: str) -> None:
        raise RequestError(f"{grammar} is too slow")

    monkeypatch.setattr(vllm_api.AsyncLLM, "add_request", add_request)
    monkeypatch.setattr(vllm_api.AsyncLLM, "__del__", lambda self: None)
    llm = object.__new__(GuardedLLM)
    llm.check_grammar = refuse
    free, bound = (SimpleNamespace(structured_outputs=given) for given in (None, "a regex"))
    asyncio.run(llm.add_request("1", "Hello", free, priority=3))
    with pytest.raises(vllm_exceptions.VLLMValidationError, match="a regex is too slow"):
        asyncio.run(llm.add_request("2", "Hello", bound))
    assert [(("1", "Hello", free), {"priority": 3})] == added
    del llm  # while it has nothing to shut down


def bare_engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a guarded engine that would fail at whatever it does with a request."""
    monkeypatch.setattr(vllm_api.AsyncLLM, "__del__", lambda self: None)
    monkeypatch.setattr(GuardedLLM, "log_requests", False, raising=False)
    llm = object.__new__(GuardedLLM)
    llm._supported_tasks = ("generate",)
    return llm


def test_prompts_that_would_wait_are_refused_where_they_join_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The door's own error comes out of vLLM's generate."""
    llm, why = bare_engine(monkeypatch), UnavailableError("9 prompt tokens wait")

    def refuse() -> None:
        raise why

    async def ask() -> None:
        async for _ in llm.generate({"prompt_token_ids": [1]}, vllm_api.SamplingParams(), "1"):
            pass

    llm.join_queue = refuse
    with pytest.raises(Exception) as raised:  # noqa: PT011 (whatever vLLM makes of it)
        asyncio.run(ask())
    assert why is vllm_api.to_serving_error(raised.value)


def test_more_sequences_than_allowed_are_refused_by_vllms_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which its OpenAI-compatible app answers with 400."""
    llm = bare_engine(monkeypatch)
    llm.max_sequences = 128
    with pytest.raises(vllm_exceptions.VLLMValidationError, match=r"at most 128 .* got 16384"):
        asyncio.run(llm.add_request("1", "Hello", vllm_api.SamplingParams(n=16384)))


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"prompt_logprobs": 0, "skip_reading_prefix_cache": False}, True),
        ({"seed": 2**63 - 1, "n": 2}, True),
        ({"seed": 2**63 - 2, "n": 2}, False),
        ({"seed": 2**63 - 1}, False),
        ({"prompt_logprobs": 0, "skip_reading_prefix_cache": True}, False),
        ({"prompt_logprobs": 0}, False),
        ({"skip_reading_prefix_cache": False}, False),
    ],
    ids=[
        *("both", "seeds beyond", "seeds within", "one seed"),
        *("the default, said", "one", "the other"),
    ],
)
def test_parameters_that_exclude_each_other_are_refused(
    given: dict[str, Any], refused: bool
) -> None:
    """Requests of both protocols are refused before the engine sees them."""
    params = vllm_api.SamplingParams(**given)
    if not refused:
        check_pairs(params)
        return
    with pytest.raises(RequestError, match=r"exclude each other|too large together"):
        check_pairs(params)


@pytest.mark.parametrize("given", [{"stop": "\ud83d"}, {"bad_words": ["a", "b\ud83d"]}], ids=str)
def test_half_of_a_surrogate_pair_does_not_reach_the_engine(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    """The OpenAI-compatible app answers vLLM's own error with 400."""
    llm = bare_engine(monkeypatch)
    with pytest.raises(vllm_exceptions.VLLMValidationError, match="half of a surrogate pair"):
        asyncio.run(llm.add_request("1", "Hello", vllm_api.SamplingParams(**given)))


def test_a_reader_that_has_ended_is_a_failed_engine() -> None:
    """Whatever vLLM says of the engine, which may be well."""

    async def read() -> None:
        await asyncio.sleep(60)

    async def look() -> list[bool]:
        llm: Any = SimpleNamespace(errored=False, output_handler=None)
        seen = [vllm_api.has_failed(llm)]
        llm.output_handler = asyncio.create_task(read())
        seen.append(vllm_api.has_failed(llm))
        llm.output_handler.cancel()
        await asyncio.wait([llm.output_handler])
        return [*seen, vllm_api.has_failed(llm)]

    assert [False, False, True] == asyncio.run(look())
    assert vllm_api.has_failed(SimpleNamespace(errored=True, output_handler=None))


def test_a_grammar_that_cannot_be_tried_is_told_to_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The OpenAI-compatible app knows no such error: the gate before it has to answer."""
    llm, why = bare_engine(monkeypatch), UnavailableError("32 new grammars wait to be tried")
    told: list[UnavailableError] = []

    async def refuse(grammar: object) -> None:
        raise why

    llm.check_grammar, llm.turn_away = refuse, told.append
    outputs = StructuredOutputsParams(regex="a+")
    params = vllm_api.SamplingParams(structured_outputs=outputs)
    with pytest.raises(UnavailableError, match="32 new grammars"):
        asyncio.run(llm.add_request("1", "Hello", params))
    assert [why] == told


def test_the_end_of_an_engine_does_not_wait_for_its_sockets() -> None:
    """Its ZMQ context is freed while a socket has a message for nobody; open ones come first."""
    context, readers = zmq.Context(), zmq.Context()
    reader = readers.socket(zmq.PULL)
    address = f"tcp://127.0.0.1:{reader.bind_to_random_port('tcp://127.0.0.1')}"
    reader.unbind(address)
    lost, known = (context.socket(zmq.PUSH) for _ in range(2))
    lost.linger = 60_000  # milliseconds for which what it holds is to be delivered
    lost.connect(address)  # nobody reads there
    lost.send(b"lost")
    resources = BackgroundResources(ctx=context, output_socket=known)
    shutdowns: list[float] = []
    llm: Any = SimpleNamespace(
        engine_core=SimpleNamespace(resources=resources),
        shutdown=lambda *, timeout: shutdowns.append(timeout),
    )
    vllm_api.shut_down(llm, 5.0)
    (waiting,) = [t for t in threading.enumerate() if t.name == "zmq end"]
    assert ([5.0], True) == (shutdowns, waiting.daemon)
    time.sleep(0.3)
    assert not known.poll(0), "its context is not at its end yet, else this raises"
    known.close()
    lost.close()
    del context, resources, llm, known, lost
    gc.collect()
    assert waiting.is_alive()
    reader.bind(address)  # now it is delivered
    waiting.join(50)
    assert not waiting.is_alive()
    readers.destroy()


_CORE = """
import subprocess, sys

worker = "import sys; sys.stdin.read()"
named = "import vllm.utils.system_utils as s; s.set_process_title('Worker'); print(flush=True);"
with subprocess.Popen([sys.executable, "-c", worker], stdin=subprocess.PIPE):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", named + worker], **pipes) as child:
        child.stdout.readline()
        print(child.pid, flush=True)
        sys.stdin.read()
"""


def test_an_engines_workers_are_among_its_processes() -> None:
    """Of an engine core's children those that call themselves workers, as vLLM's do."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _CORE], stdin=pipe, stdout=pipe) as core:
        assert core.stdout is not None
        worker = int(core.stdout.readline().split()[-1])
        manager = SimpleNamespace(processes=[core])
        resources = SimpleNamespace(engine_manager=manager, coordinator=None)
        llm: Any = SimpleNamespace(engine_core=SimpleNamespace(resources=resources))
        assert [core.pid, worker] == vllm_api.engine_processes(llm)

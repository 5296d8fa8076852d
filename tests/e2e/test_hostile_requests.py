"""Requests with nonsense in them: each is answered or refused, and the server lives on."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.grpc_requests import ask, generate, sampling
from tests.e2e.load import Connection, Raw, Refused, infer_request
from tests.e2e.tiny_server import CONTEXT, metric
from tests.e2e.triton_server import TritonServer
from tests.hostile import CONTENTS, DATATYPES, SHAPES, cases, right, tensors

pytestmark = pytest.mark.timeout(300)

HOSTILE_CASES = int(os.environ.get("HOSTILE_SERVER_CASES", "150"))
LIMIT_SECONDS = 60  # of a request: one that takes as long hangs


@pytest.fixture
def server(crowded: TritonServer) -> TritonServer:
    """The server of the group."""
    return crowded


@dataclass(frozen=True)
class Well:
    """What is the same before and after: the processes, the restarts, a text."""

    processes: frozenset[int]
    restarts: float
    text: str

    @classmethod
    def of(cls, server: TritonServer) -> Well:
        """Look now."""
        names = ("triton_python_backend_stub", "VLLM::EngineCore")
        processes = [process.pid for name in names for process in server.processes(name)]
        restarts = metric(server, "triton_vllm:engine_restarts_total")
        assert len(names) == len(processes)
        return cls(frozenset(processes), restarts, generate(server, "Hello"))


def check_end(end: str | Refused) -> None:
    """Each error has the fault of the request, and a right request gets no error."""
    if isinstance(end, Refused):
        assert end.error
        for excuse in (f"within {LIMIT_SECONDS} s", "the engine died", "healthy", "ended without"):
            assert excuse not in end.error


def test_hostile_requests(server: TritonServer) -> None:
    """Each gets an answer or an error with the reason, and the server goes on."""
    well = Well.of(server)
    ends: Counter[type] = Counter()
    with Connection(server) as connection:

        @cases(HOSTILE_CASES)
        @given(inputs=tensors())
        def check(inputs: dict[str, Any]) -> None:
            end = connection.ask(infer_request(inputs, timeout=LIMIT_SECONDS * 1_000_000))
            check_end(end)
            ends[type(end)] += 1
            if sum(ends.values()) % 50 == 0:
                assert well == Well.of(server)

        check()
    assert sum(ends.values()) >= HOSTILE_CASES
    assert min(ends[str], ends[Refused]) > HOSTILE_CASES // 10
    assert well == Well.of(server)


def test_tensors_of_a_wrong_kind(server: TritonServer) -> None:
    """A wrong data type or shape, or bytes that do not fit, is refused, and the server goes on."""
    well = Well.of(server)
    ends: Counter[type] = Counter()
    with Connection(server) as connection:

        @cases(HOSTILE_CASES)
        @given(
            inputs=right(),
            which=st.integers(0, 99),
            wrong=st.builds(Raw, DATATYPES, SHAPES, CONTENTS),
        )
        def check(inputs: dict[str, Any], which: int, wrong: Raw) -> None:
            inputs = inputs | {sorted(inputs)[which % len(inputs)]: wrong}
            end = connection.ask(infer_request(inputs, timeout=LIMIT_SECONDS * 1_000_000))
            check_end(end)
            ends[type(end)] += 1

        check()
    assert ends[Refused] > HOSTILE_CASES // 2
    assert well == Well.of(server)


def test_what_is_right_is_answered_alike_streamed_and_whole(server: TritonServer) -> None:
    """A greedy request has one answer: in deltas, at once, and again after all the others."""
    answered: list[tuple[dict[str, Any], str]] = []
    with Connection(server) as connection:

        @cases(HOSTILE_CASES // 10)
        @given(inputs=right().filter(lambda inputs: "PROMPT" not in inputs))
        def check(inputs: dict[str, Any]) -> None:
            given = json.loads(inputs["sampling_parameters"])
            greedy = json.dumps(given | {"temperature": 0, "n": 1}).encode()
            inputs = inputs | {"sampling_parameters": greedy, "exclude_input_in_output": True}
            whole = connection.ask(infer_request(inputs | {"stream": False}))
            assert isinstance(whole, str), whole
            assert whole == connection.ask(infer_request(inputs | {"stream": True}))
            answered.append((inputs | {"stream": False}, whole))

        check()
        assert [text for _, text in answered] == [
            connection.ask(infer_request(inputs)) for inputs, _ in answered
        ]
    assert any(text for _, text in answered)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"text_input": b"x " * 5_000_000}, "maximum context length"),
        ({"text_input": b"a\xff"}, "text_input: not UTF-8: byte 0xff at offset 1"),
        ({"text_input": b"a", "sampling_parameters": b'{"n": 1e9}'}, '"n": must be at most'),
        ({"text_input": b"a", "sampling_parameters": b'{"logprobs": 100000}'}, "logprobs"),
        ({"text_input": b"a", "sampling_parameters": b'{"max_tokens": -1}'}, "max_tokens"),
        ({"text_input": b"a", "sampling_parameters": b"[" * 100_000}, "sampling_parameters: not"),
        ({"text_input": b"a", "sampling_parameters": b'{"top_p": NaN}'}, "NaN is not allowed"),
    ],
    ids=["10 MB", "not UTF-8", "n", "logprobs", "max_tokens", "deep", "NaN"],
)
def test_too_much_of_something(
    server: TritonServer, inputs: dict[str, bytes], expected: str
) -> None:
    """The error names what is too much."""
    with Connection(server) as connection:
        end = connection.ask(infer_request(inputs))
    assert isinstance(end, Refused), end
    assert expected in end.error


def test_many_tokens_end_with_the_context(server: TritonServer) -> None:
    """More of them than fit are no error, and no more than fit."""
    inputs = {
        "input_ids": [5] * (CONTEXT - 20),
        "sampling_parameters": sampling(max_tokens=10**9, ignore_eos=True),
        "return_num_output_tokens": True,
        "return_finish_reason": True,
    }
    (response,) = ask(server, inputs)
    assert not response.error
    assert ("length",) == response.outputs["finish_reason"]
    assert int(response.outputs["num_output_tokens"][0]) <= 20


@pytest.mark.parametrize("path", ["generate", "generate_stream", "infer"])
def test_a_compressed_body_is_not_unpacked(server: TritonServer, path: str) -> None:
    """A request in gzip's format over HTTP is refused as it is."""
    body = gzip.compress(b'{"text_input": "a"}')
    url = f"http://127.0.0.1:{server.http_port}/v2/models/vllm/{path}"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = httpx.post(url, content=body, headers=headers, timeout=60)
    assert answer.status_code >= 400
    assert generate(server, "Hello")

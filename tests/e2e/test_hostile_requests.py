"""Requests that nobody should send, on a server of their own, which then stops as any other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given

from tests.e2e.load import OneByOne, Refused, infer_request
from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import Request, TritonServer, generate, running, sampling
from tests.hostile import SLOW_SCHEMA, cases, tensors

pytestmark = pytest.mark.timeout(300)

HOSTILE_CASES = int(os.environ.get("HOSTILE_SERVER_CASES", "500"))
SERVING = {"default_max_tokens": 16, "grammar_timeout_seconds": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for these tests alone; none of them may leave it so that it cannot stop."""
    repository = add_tiny_model(
        tmp_path_factory.mktemp("hostile"), SERVING, max_num_seqs=4, enable_prefix_caching=False
    )
    with running(repository, "hostile", "vllm") as server:
        yield server


def test_hostile_requests(server: TritonServer) -> None:
    """Each gets an answer or an error that says why; the server lives, and serves the next one."""
    truth = generate(server, "Hello")
    (stub,) = server.processes("triton_python_backend_stub")
    ends: Counter[type] = Counter()
    with OneByOne(server) as stream:

        @cases(HOSTILE_CASES)
        @given(inputs=tensors())
        def check(inputs: dict[str, Any]) -> None:
            end = stream.ask(infer_request(inputs, timeout=5_000_000))
            assert not isinstance(end, Refused) or end.error
            ends[type(end)] += 1
            if sum(ends.values()) % 50 == 0:
                assert truth == generate(server, "Hello")

        check()
    assert sum(ends.values()) >= HOSTILE_CASES
    assert min(ends[str], ends[Refused]) > HOSTILE_CASES // 10
    assert truth == generate(server, "Hello")
    assert [stub] == server.processes("triton_python_backend_stub")


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"text_input": b"x " * 5_000_000}, "maximum context length"),
        ({"text_input": b"a\xff"}, "text_input: not UTF-8: byte 0xff at offset 1"),
        ({"text_input": b"a", "sampling_parameters": b'{"n": 1e9}'}, "n must be at most"),
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
    with OneByOne(server) as stream:
        end = stream.ask(infer_request(inputs))
    assert isinstance(end, Refused), end
    assert expected in end.error


def test_a_grammar_that_takes_too_long_is_stopped(server: TritonServer) -> None:
    """The request is refused after the limit, others go on, and so do good grammars."""
    outputs = {"json": SLOW_SCHEMA}
    inputs = {"text_input": "a", "sampling_parameters": sampling(structured_outputs=outputs)}
    with Request(server, inputs) as request:
        truth = generate(server, "Hello")
        last = request.all(seconds=120)[-1]
    assert "takes longer than 2 s to compile" in last.error
    choice = generate(server, "Yes or no?", structured_outputs={"choice": ["yes", "no"]})
    assert choice in ("yes", "no")
    assert truth == generate(server, "Hello")

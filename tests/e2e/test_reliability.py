"""Clients that cancel, vanish, do not read, are in a hurry, or come in crowds."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.grpc_requests import Request, ask, generate, refusal, sampling
from tests.e2e.load import (
    Connection,
    Refused,
    endless,
    flood,
    http_stream,
    occupy,
    prompt_request,
    read_answer,
    read_http_stream,
    running_client,
)
from tests.e2e.tiny_server import CONTEXT, await_idle, await_metric, metric
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(300)

BATCH = 4  # as the server `crowded` has it, and the next two
MAX_REQUESTS = 24
MAX_QUEUED_TOKENS = 5_000
TRIES = 5  # a busy machine may be late once, not in the median
FIRST_TOKENS = "vllm:time_to_first_token_seconds_count"
A_MOMENT = 3.0  # seconds: a cancellation check, a step of the engine and what the test adds


@pytest.fixture
def server(crowded: TritonServer) -> TritonServer:
    """The server of the group."""
    return crowded


def count_aborts(server: TritonServer, since: int) -> int:
    return server.log.read_bytes()[since:].count(b"Aborted request(s)")


def seconds_to_abort(server: TritonServer, leave: Callable[[], object]) -> float:
    """Let a client leave; return how long it is until the engine is told to abort."""
    since, left = server.log_size(), time.monotonic()
    leave()
    while not count_aborts(server, since):
        assert time.monotonic() < left + 60, "not aborted"
        time.sleep(0.005)
    return time.monotonic() - left


def first_tokens(server: TritonServer) -> float:
    """Return how many requests have had one."""
    return metric(server, FIRST_TOKENS)


# The prompt takes a good part of the context, and its prefill many steps of the engine.
LONG_PROMPT = "x " * (CONTEXT // 4)
VERY_LONG_PROMPT = "x " * (CONTEXT * 3 // 4)


@pytest.mark.parametrize(
    ("phase", "stream"),
    [
        pytest.param(phase, stream, id=f"{phase}, {'streamed' if stream else 'whole'}", marks=marks)
        for phase, stream, marks in (
            ("queued", True, ()),
            ("queued", False, pytest.mark.slow),
            ("prefilling", True, pytest.mark.slow),
            ("prefilling", False, ()),
            ("decoding", True, ()),
            ("decoding", False, pytest.mark.slow),
        )
    ],
)
def test_a_cancelled_request_ends_in_the_engine(
    server: TritonServer, phase: str, stream: bool
) -> None:
    """In each phase the engine aborts the request at once and frees its KV cache blocks."""
    prompt = VERY_LONG_PROMPT if phase == "prefilling" else "Hello"
    seconds: list[float] = []
    with ExitStack() as stack:
        others = BATCH if phase == "queued" else 1
        await_idle(server)
        since = first_tokens(server)
        occupy(server, stack, others)
        await_metric(server, FIRST_TOKENS, lambda n: n >= since + others)
        for _ in range(TRIES):
            before = first_tokens(server)
            request = Request(server, endless(prompt, stream=stream))
            if phase == "queued":
                await_metric(server, "vllm:num_requests_waiting", lambda n: n == 1)
            elif phase == "prefilling":
                await_metric(server, "vllm:num_requests_running", lambda n: n == 2)
            else:
                await_metric(server, FIRST_TOKENS, before.__lt__)
            seconds.append(seconds_to_abort(server, request.cancel))
            await_metric(server, "vllm:num_requests_waiting", lambda n: n == 0)
            await_metric(server, "vllm:num_requests_running", lambda n: n == others)
            assert (phase == "decoding") == (first_tokens(server) > before)
    await_idle(server)
    assert statistics.median(seconds) < A_MOMENT, seconds
    # Of a gauge that is written at each step, the last one saw the block of a last token.
    assert used_blocks(server) <= 1


def used_blocks(server: TritonServer) -> float:
    """Return how many blocks of the KV cache are in use."""
    found = re.search(r'vllm:cache_config_info{.*num_gpu_blocks="(\d+)"', server.metrics())
    assert found
    return round(metric(server, "vllm:kv_cache_usage_perc") * int(found[1]), 2)


def test_a_vanished_client_is_aborted(server: TritonServer) -> None:
    """Kill -9 of a client over gRPC, and a closed connection over HTTP, end their requests."""
    by_grpc, by_http = [], []
    for _ in range(3):
        client, error = running_client(server)
        assert not error
        by_grpc.append(seconds_to_abort(server, client.kill))
        client.communicate()
        connection = http_stream(server, "Hello", CONTEXT - 10)
        connection.recv(1)
        by_http.append(seconds_to_abort(server, connection.close))
    # Triton itself can be late to see it under load.
    assert min(by_grpc) < 2 * A_MOMENT, by_grpc
    assert min(by_http) < A_MOMENT, by_http


def test_a_client_that_does_not_read_delays_nobody(server: TritonServer) -> None:
    """Other clients get their texts meanwhile; this one gets its text when it reads again."""
    truth = generate(server, "Hello", max_tokens=2000, ignore_eos=True)
    others = generate(server, "Once upon", max_tokens=50)
    with ExitStack() as stack:
        slow = [stack.enter_context(http_stream(server, "Hello", 2000)) for _ in range(BATCH - 2)]
        connection = stack.enter_context(Connection(server))
        parameters = sampling(max_tokens=2000, ignore_eos=True)
        unread = connection.send(prompt_request("Hello", parameters, stream=True))
        for _ in range(3):
            assert others == generate(server, "Once upon", max_tokens=50)
        await_idle(server)  # the engine has given all their tokens away
        assert [truth] * len(slow) == [read_http_stream(connection) for connection in slow]
        assert truth == read_answer(unread)


def test_a_time_limit_ends_a_request(server: TritonServer) -> None:
    """As parameter, as gRPC's timeout and as HTTP's: an error that says so, and a metric."""
    before = metric(server, "triton_vllm:requests_total", 'outcome="timeout"')
    by_parameter = ask(server, endless(timeout_seconds=0.5))
    by_grpc = ask(server, endless(), timeout=500_000)
    _, by_http = server.post(
        "v2/models/vllm/generate",
        {"text_input": "Hello", "max_tokens": CONTEXT - 10, "ignore_eos": True, "timeout": 500_000},
    )
    errors = [by_parameter[-1].error, by_grpc[-1].error, json.loads(by_http)["error"]]
    assert ["request timed out after 0.5 s"] * 3 == errors
    assert "UNAVAILABLE" == refusal(server, endless(timeout_seconds=0.5, stream=False))[0]
    count = before + 4
    deadline = time.monotonic() + 10
    while metric(server, "triton_vllm:requests_total", 'outcome="timeout"') != count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    await_idle(server)


def test_a_time_limit_counts_the_time_in_the_queue(server: TritonServer) -> None:
    """A request that never got into the batch is answered in time, too."""
    with ExitStack() as stack:
        occupy(server, stack, BATCH)
        seconds = []
        for _ in range(TRIES):
            (response,) = ask(server, endless(timeout_seconds=0.5))
            assert "request timed out after 0.5 s" in response.error
            seconds.append(response.seconds)
    assert 0.5 <= min(seconds)
    assert statistics.median(seconds) < 0.5 + A_MOMENT, seconds


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_time_limit_may_keep_the_text_so_far(server: TritonServer, stream: bool) -> None:
    """With on_timeout "finish" the answer ends as a good one, with what there is."""
    truth = generate(server, "Hello", max_tokens=20)
    inputs = endless(stream=stream, timeout_seconds=3.0, on_timeout="finish")
    inputs |= {"exclude_input_in_output": True, "return_finish_reason": True}
    responses = ask(server, inputs)
    assert ("", True) == (responses[-1].error, responses[-1].final)
    text = "".join(t for r in responses for t in r.outputs.get("text_output", ()))
    assert text.startswith(truth)
    reasons = [r.outputs["finish_reason"] for r in responses if "finish_reason" in r.outputs]
    assert ("abort",) == reasons[-1]


def test_above_the_limit_requests_are_refused_at_once(server: TritonServer) -> None:
    """Each of many requests gets its text or the limit; afterwards all is as before."""
    truth = generate(server, "Hello", max_tokens=30)
    ends = flood(server, requests=200, at_once=4 * MAX_REQUESTS, prompt="Hello", max_tokens=30)
    assert 200 == len(ends)
    texts = [end for end in ends if not isinstance(end, Refused)]
    refusals = [end for end in ends if isinstance(end, Refused)]
    assert {truth} == set(texts)
    assert refusals
    limit = f"the limit of this front end is {MAX_REQUESTS} (max_concurrent_requests)"
    assert [] == [r.error for r in refusals if limit not in r.error]
    assert truth == generate(server, "Hello", max_tokens=30)


def test_while_prompts_wait_requests_are_refused(server: TritonServer) -> None:
    """With more prompt tokens than the limit in the queue, the answer is the limit, at once."""
    with ExitStack() as stack:
        occupy(server, stack, BATCH)
        for _ in range(2):
            stack.enter_context(Request(server, endless(LONG_PROMPT)))
        await_metric(server, "vllm:num_requests_waiting", lambda n: n == 2)
        seconds = []
        for _ in range(TRIES):
            (refused,) = ask(server, {"text_input": "Hello", "stream": True})
            assert f"the limit is {MAX_QUEUED_TOKENS} (max_queued_tokens)" in refused.error
            seconds.append(refused.seconds)
        assert "UNAVAILABLE" == refusal(server, {"text_input": "Hello"})[0]
    assert statistics.median(seconds) < A_MOMENT, seconds
    left = time.monotonic()
    while ask(server, {"text_input": "Hello"})[-1].error:  # until the last one is aborted
        assert time.monotonic() < left + 60
        time.sleep(0.1)
    await_idle(server)

"""Clients that cancel, vanish, do not read, or come in crowds; and the end of the server.

One server with a tiny model, on which the tests run in the order in which they stand here: the last
ones unload the model and stop the server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.e2e.load import (
    OneByOne,
    Refused,
    flood,
    http_stream,
    infer_request,
    read_http_stream,
)
from tests.e2e.tiny_server import CONTEXT, add_tiny_model
from tests.e2e.triton_server import (
    EXIT_TIMEOUT_SECONDS,
    STOP_SECONDS,
    Request,
    TritonServer,
    ask,
    generate,
    sampling,
    start_requests,
)
from tests.hostile import SLOW_SCHEMA, tensors

pytestmark = pytest.mark.timeout(300)

BATCH = 4
MAX_REQUESTS = 24
MAX_QUEUED_TOKENS = 5_000
DRAIN_SECONDS = 3
SLACK = 15.0  # seconds that a loaded machine may add to what takes a tenth of one

SERVING = {
    "metrics_period_seconds": 0.1,
    "max_requests": MAX_REQUESTS,
    "max_queued_tokens": MAX_QUEUED_TOKENS,
    "drain_seconds": DRAIN_SECONDS,
    "default_max_tokens": 16,
    "grammar_timeout_seconds": 2,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server for these tests alone."""
    repository = add_tiny_model(
        tmp_path_factory.mktemp("reliability"),
        SERVING,
        max_num_seqs=BATCH,
        max_num_batched_tokens=256,
        enable_prefix_caching=False,
    )
    server = TritonServer(repository, "reliability", "vllm")
    yield server
    server.kill()


def metric(server: TritonServer, name: str, label: str = "") -> float:
    """Return the value of one of the model's metrics."""
    for line in server.metrics().splitlines():
        if line.startswith(f"{name}{{") and label in line:
            return float(line.rpartition(" ")[2])
    return 0.0


def await_metric(
    server: TritonServer, name: str, good: Callable[[float], bool], seconds: float = 30
) -> None:
    """Wait until a metric has a good value."""
    deadline = time.monotonic() + seconds
    while not good(metric(server, name)):
        assert time.monotonic() < deadline, f"{name} is {metric(server, name)}"
        time.sleep(0.02)


def await_idle(server: TritonServer) -> None:
    """Wait until nothing runs.

    vLLM writes the gauge with each step of the engine: after an abort one more step is needed.
    """
    deadline = time.monotonic() + 60
    while metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "requests are still running"
        generate(server, "Hello", max_tokens=1)
        time.sleep(0.2)


def endless(prompt: str = "Hello", *, stream: bool = True, **parameters: Any) -> dict[str, Any]:
    """Return the inputs of a request that does not end in any test's time."""
    return {
        "text_input": prompt,
        "stream": stream,
        "sampling_parameters": sampling(max_tokens=CONTEXT - 10, ignore_eos=True, **parameters),
    }


def occupy(server: TritonServer, stack: ExitStack, count: int) -> list[Request]:
    """Start endless requests, not streamed, so that this process has no work with them."""
    requests = [stack.enter_context(Request(server, endless(stream=False))) for _ in range(count)]
    await_metric(server, "vllm:num_requests_running", lambda n: n >= count)
    return requests


def count_aborts(server: TritonServer, since: int) -> int:
    return server.log.read_bytes()[since:].count(b"Aborted request(s)")


def await_aborts(server: TritonServer, since: int, count: int, seconds: float) -> None:
    """Wait until the engine was told to abort."""
    deadline = time.monotonic() + seconds
    while count_aborts(server, since) < count:
        assert time.monotonic() < deadline, "not aborted"
        time.sleep(0.005)


# The prompt takes a good part of the context, and its prefill many steps of the engine.
LONG_PROMPT = "x " * (CONTEXT // 4)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("phase", ["queued", "prefilling", "decoding"])
def test_a_cancelled_request_ends_in_the_engine(
    server: TritonServer, phase: str, stream: bool
) -> None:
    """In whatever phase: the engine is told within a moment, and its KV cache blocks come free."""
    await_idle(server)
    with ExitStack() as stack:
        others = BATCH if phase == "queued" else 1
        occupy(server, stack, others)
        prompt = LONG_PROMPT if phase == "prefilling" else "Hello"
        request = Request(server, endless(prompt, stream=stream))
        if phase == "queued":
            await_metric(server, "vllm:num_requests_waiting", lambda n: n == 1)
        else:
            await_metric(server, "vllm:num_requests_running", lambda n: n == 2)
        since = server.log_size()
        request.cancel()
        await_aborts(server, since, 1, 0.25 + SLACK)
        await_metric(server, "vllm:num_requests_waiting", lambda n: n == 0)
        await_metric(server, "vllm:num_requests_running", lambda n: n == others)
    await_idle(server)
    # Of a gauge that is written at each step, the last one saw the block of a last token.
    assert metric(server, "vllm:kv_cache_usage_perc") < 0.01


VANISHING_CLIENT = """
import sys
from tests.e2e.triton_server import *
class Server: grpc_port = int(sys.argv[1])
request = Request(Server, json.loads(sys.argv[2]))
request.next()
print("running", flush=True)
time.sleep(60)
"""


def test_a_vanished_client_is_aborted(server: TritonServer) -> None:
    """Kill -9 of a client over gRPC, and a closed connection over HTTP, end their requests."""
    client = subprocess.Popen(
        [sys.executable, "-c", VANISHING_CLIENT, str(server.grpc_port), json.dumps(endless())],
        stdout=subprocess.PIPE,
    )
    assert client.stdout is not None
    assert b"running" in client.stdout.readline()
    since = server.log_size()
    client.kill()
    client.communicate()
    await_aborts(server, since, 1, 60)  # Triton itself is late to see it under load
    connection = http_stream(server, "Hello", CONTEXT - 10)
    connection.recv(1)
    since = server.log_size()
    connection.close()
    await_aborts(server, since, 1, 60)


def test_a_client_that_does_not_read_delays_nobody(server: TritonServer) -> None:
    """Others get their texts meanwhile; its own is complete when it reads again."""
    truth = generate(server, "Hello", max_tokens=2000, ignore_eos=True)
    others = generate(server, "Once upon", max_tokens=50)
    with ExitStack() as stack:
        slow = [stack.enter_context(http_stream(server, "Hello", 2000)) for _ in range(BATCH - 1)]
        for _ in range(3):
            assert others == generate(server, "Once upon", max_tokens=50)
        await_idle(server)
        assert [truth] * len(slow) == [read_http_stream(connection) for connection in slow]


def test_a_time_limit_ends_a_request(server: TritonServer) -> None:
    """As parameter, as gRPC's timeout and as HTTP's: an error that says so, and a metric."""
    before = metric(server, "triton_vllm:requests_total", 'outcome="deadline"')
    by_parameter = ask(server, endless(timeout_seconds=0.5))
    by_grpc = ask(server, endless(), timeout=500_000)
    _, by_http = server.post(
        "v2/models/vllm/generate",
        {"text_input": "Hello", "max_tokens": CONTEXT - 10, "ignore_eos": True, "timeout": 500_000},
    )
    errors = [by_parameter[-1].error, by_grpc[-1].error, json.loads(by_http)["error"]]
    assert ["not done within 0.5 s, its time limit"] * 3 == errors
    count = before + 3
    deadline = time.monotonic() + 10
    while metric(server, "triton_vllm:requests_total", 'outcome="deadline"') != count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    await_idle(server)


def test_a_time_limit_counts_the_time_in_the_queue(server: TritonServer) -> None:
    """A request that never got into the batch is answered in time, too."""
    with ExitStack() as stack:
        occupy(server, stack, BATCH)
        (response,) = ask(server, endless(timeout_seconds=0.5))
        assert "not done within 0.5 s" in response.error
        assert response.seconds < 30


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
    """Each of a crowd is answered right or told the limit; afterwards all is as before."""
    truth = generate(server, "Hello", max_tokens=30)
    ends = flood(server, requests=400, at_once=4 * MAX_REQUESTS, prompt="Hello", max_tokens=30)
    assert 400 == len(ends)
    texts = [end for end in ends if not isinstance(end, Refused)]
    refusals = [end for end in ends if isinstance(end, Refused)]
    assert {truth} == set(texts)
    assert refusals
    limit = f"the limit of this front end is {MAX_REQUESTS} (max_requests)"
    assert [] == [r.error for r in refusals if limit not in r.error]
    assert truth == generate(server, "Hello", max_tokens=30)


def test_while_prompts_wait_requests_are_refused(server: TritonServer) -> None:
    """With more prompt tokens than the limit in the queue, the answer is the limit, at once."""
    with ExitStack() as stack:
        occupy(server, stack, BATCH)
        for _ in range(2):
            stack.enter_context(Request(server, endless(LONG_PROMPT)))
        await_metric(server, "vllm:num_requests_waiting", lambda n: n == 2)
        (refused,) = ask(server, {"text_input": "Hello", "stream": True})
        assert f"the limit is {MAX_QUEUED_TOKENS} (max_queued_tokens)" in refused.error
    await_idle(server)


HOSTILE_CASES = int(os.environ.get("HOSTILE_SERVER_CASES", "500"))


def test_hostile_requests(server: TritonServer) -> None:
    """Each gets an answer or an error that says why; the server lives, and serves the next one."""
    truth = generate(server, "Hello")
    (stub,) = server.processes("triton_python_backend_stub")
    ends: Counter[type] = Counter()
    with OneByOne(server) as stream:

        @settings(
            max_examples=HOSTILE_CASES,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs=tensors())
        def check(inputs: dict[str, Any]) -> None:
            end = stream.ask(infer_request(inputs, timeout=5_000_000))
            assert not isinstance(end, Refused) or end.error
            ends[type(end)] += 1
            if sum(ends.values()) % 50 == 0:
                assert truth == generate(server, "Hello")

        check()
    assert sum(ends.values()) >= HOSTILE_CASES
    assert min(ends[str], ends[Refused]) > HOSTILE_CASES // 20
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


def test_an_unload_ends_what_does_not_finish(server: TritonServer) -> None:
    """A short request finishes, an endless one gets UNAVAILABLE after drain_seconds."""
    with ExitStack() as stack:
        (endless_one,) = occupy(server, stack, 1)
        (short,) = start_requests(server, stack, 100)
        server.unload("vllm")
        start = time.monotonic()
        assert short.all()[-1].final
        last = endless_one.all()[-1]
        assert f"{DRAIN_SECONDS} s of grace are over" in last.error
        assert time.monotonic() - start < DRAIN_SECONDS + 2 + SLACK
    server.await_log("requests may run for 3 s more", seconds=1)
    server.await_log("1 requests aborted", seconds=1)
    server.await_state("vllm", "UNAVAILABLE")
    assert [] == server.await_no_processes(5, "VLLM::")


def test_sigterm_ends_what_does_not_finish(server: TritonServer) -> None:
    """As an unload, within the exit timeout, with exit code 0; a second SIGTERM does no harm."""
    assert "" == server.load("vllm")
    with ExitStack() as stack:
        (endless_one,) = occupy(server, stack, 1)
        (short,) = start_requests(server, stack, 100)
        with http_stream(server, "Hello", CONTEXT - 10) as http:
            http.recv(1)
            server.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            assert short.all()[-1].final
            server.process.send_signal(signal.SIGTERM)
            assert "s of grace are over" in endless_one.all()[-1].error
            assert "s of grace are over" in read_http_stream(http)
        assert 0 == server.process.wait(STOP_SECONDS)
        assert time.monotonic() - start < EXIT_TIMEOUT_SECONDS
    assert [] == server.await_no_processes(5)

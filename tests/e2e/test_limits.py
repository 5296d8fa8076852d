"""What the operator allows one request, and all that wait, over Triton's protocols and OpenAI's.

One server with both. The tests run in the order of this file.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.e2e.grpc_requests import Request, ask, generate, sampling
from tests.e2e.limited import (
    BATCH,
    BATCHED_TOKENS,
    DEFAULT_TOKENS,
    GRAMMAR_SECONDS,
    LIMIT,
    MAX_QUEUED_TOKENS,
    MAX_SEQUENCES,
    Limited,
)
from tests.e2e.load import endless
from tests.e2e.openai_port import client_of, complete, eventually, metric, streams
from tests.e2e.tiny_server import CONTEXT, await_idle, await_metric

pytestmark = pytest.mark.timeout(300)

SLACK = 15.0  # seconds that a loaded machine may add
BURST = 12
ADDRESS = {
    "type": "object",
    "properties": {
        name: {"type": "string", "minLength": 1}
        for name in ("name", "street", "number", "city", "region", "code", "country", "phone")
    },
}

# Long enough to be tokenized off the event loop, and for two to be above the limit.
LONG_PROMPT = "x " * (CONTEXT // 4)
TIME_LIMIT = f"request timed out after {LIMIT:g} s"


@pytest.fixture
def served(limited: Limited) -> Limited:
    """The server of the group."""
    return limited


def test_the_default_length_holds_over_both_protocols(served: Limited) -> None:
    """For whatever a client sends without a length; its own length goes first."""
    inputs = {"text_input": "Hello", "return_num_output_tokens": True}
    inputs |= {"sampling_parameters": '{"ignore_eos": true, "temperature": 0}'}
    (answer,) = ask(served.triton, inputs)
    assert (str(DEFAULT_TOKENS),) == answer.outputs["num_output_tokens"]
    how: Any = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
    messages: Any = [{"role": "user", "content": "Hello"}]
    with client_of(served.port) as client:
        answers = [
            client.chat.completions.create(messages=messages, **how),
            client.completions.create(prompt="Hello", **how),
            client.completions.create(prompt="Hello", max_tokens=None, **how),
            client.completions.create(prompt="Hello", max_tokens=3, **how),
        ]
    assert [DEFAULT_TOKENS] * 3 + [3] == [answer.usage.completion_tokens for answer in answers]


def ended_by_the_limit(served: Limited) -> float:
    return metric(served.triton, "triton_vllm:requests_total", outcome="timeout")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_default_time_limit_over_grpc(served: Limited, stream: bool) -> None:
    """A request without a limit gets the operator's; a longer limit of its own holds."""
    (last,) = [r for r in ask(served.triton, endless(stream=stream)) if r.final or r.error]
    assert TIME_LIMIT == last.error
    assert LIMIT <= last.seconds < LIMIT + SLACK
    await_idle(served.triton)
    longer = endless(stream=False, timeout_seconds=LIMIT + 1)
    assert f"request timed out after {LIMIT + 1:g} s" in ask(served.triton, longer)[-1].error
    await_idle(served.triton)


def test_the_default_time_limit_over_openai(served: Limited) -> None:
    """The client is told so with 504, and the engine works on it no longer."""
    before = ended_by_the_limit(served)
    since = time.monotonic()
    with pytest.raises(openai.APIStatusError, match=TIME_LIMIT) as raised:
        served.completions()
    assert LIMIT <= time.monotonic() - since < LIMIT + SLACK
    assert 504 == raised.value.status_code
    await_idle(served.triton)
    # The metrics are late: the one before may come into it, too.
    eventually(lambda: ended_by_the_limit(served) > before, "it counts as a time limit")


def test_the_default_time_limit_ends_a_stream_over_openai(served: Limited) -> None:
    """Its last event is the error."""
    with (
        streams(served.port, 1, CONTEXT - 10) as (stream,),
        pytest.raises(openai.APIError, match=TIME_LIMIT),
    ):
        list(stream)
    await_idle(served.triton)


@pytest.mark.parametrize("n", [MAX_SEQUENCES + 1, 16384])
def test_too_many_sequences_are_refused(served: Limited, n: int) -> None:
    """At both doors, at once, with the limit; as many as are allowed are generated."""
    truth = generate(served.triton, "Hello")
    since = time.monotonic()
    (refused,) = ask(served.triton, endless(n=n, temperature=1))
    expected = f'"n": must be at most {MAX_SEQUENCES} (max_n), got {n}'
    assert f"sampling_parameters: {expected}" in refused.error
    expected = expected.replace('"', "").replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(openai.BadRequestError, match=expected):
        served.completions(n=n, temperature=1)
    assert time.monotonic() - since < SLACK
    allowed = served.completions(n=MAX_SEQUENCES, temperature=1, tokens=2)
    assert MAX_SEQUENCES == len(allowed.choices)
    assert truth == generate(served.triton, "Hello")


def test_a_grammar_that_takes_longer_than_the_limit_is_refused(served: Limited) -> None:
    """Over both protocols it is the client's mistake; requests without a grammar go on."""
    truth = generate(served.triton, "Hello")
    expected = f"takes longer than {GRAMMAR_SECONDS:g} s"
    outputs = {"json": ADDRESS}
    inputs = {"text_input": "a", "sampling_parameters": sampling(structured_outputs=outputs)}
    (refused,) = ask(served.triton, inputs, seconds=120)
    assert expected in refused.error
    schema: Any = {"type": "json_schema", "json_schema": {"name": "address", "schema": ADDRESS}}
    asked: list[Any] = [{"role": "user", "content": "Where?"}]
    with client_of(served.port) as client, pytest.raises(openai.BadRequestError, match=expected):
        client.chat.completions.create(model="tiny", messages=asked, response_format=schema)
    assert truth == generate(served.triton, "Hello")


def occupy(served: Limited, stack: ExitStack) -> None:
    """Fill the batch, so that later requests wait for their prefill."""
    for _ in range(BATCH):
        inputs = endless(stream=False, timeout_seconds=250)
        stack.enter_context(Request(served.triton, inputs))
    await_metric(served.triton, "vllm:num_requests_running", lambda n: n >= BATCH)


def test_a_burst_of_long_prompts_over_grpc(served: Limited) -> None:
    """All are admitted while none waits; most are refused at the queue.

    Two are more than may wait. They are answered when their turn comes.
    """
    parameters = sampling(max_tokens=2, timeout_seconds=250)
    inputs = {"text_input": LONG_PROMPT, "sampling_parameters": parameters}
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(BURST))
        batch = stack.enter_context(ExitStack())
        occupy(served, batch)
        burst = [stack.enter_context(Request(served.triton, inputs)) for _ in range(BURST)]
        answers = as_completed([pool.submit(request.next, 200) for request in burst])
        for refused in itertools.islice(answers, BURST - 2):
            assert f"the limit is {MAX_QUEUED_TOKENS} (max_queued_tokens)" in refused.result().error
        batch.close()
        assert [""] * 2 == [admitted.result().error for admitted in answers]
    await_idle(served.triton)


def test_a_burst_of_long_prompts_over_openai(served: Limited) -> None:
    """They get 503; those that may wait have the operator's time limit."""

    def error(_: int) -> str:
        with pytest.raises(openai.APIStatusError) as raised:
            complete(client, 10, prompt=LONG_PROMPT)
        message = str(raised.value.body["message"])
        assert raised.value.status_code == (504 if message == TIME_LIMIT else 503)
        return message

    with ExitStack() as stack:
        client = stack.enter_context(client_of(served.port))
        pool = stack.enter_context(ThreadPoolExecutor(BURST))
        occupy(served, stack)
        errors = list(pool.map(error, range(BURST)))
    # Two at first, and others if those are over before all have come.
    admitted = errors.count(TIME_LIMIT)
    refused = [error for error in errors if "(max_queued_tokens)" in error]
    assert BURST == admitted + len(refused)
    assert f"the limit is {MAX_QUEUED_TOKENS} " in refused[0]
    assert admitted >= 2
    await_idle(served.triton)


def test_a_seed_holds_for_a_prompt_in_parts(served: Limited) -> None:
    """The same seed gives the same text, as with a short prompt."""
    # The first token is one of several, those after it are certain.
    how = {"max_tokens": 2, "ignore_eos": True, "temperature": 1.0}
    prompt = "x " * 700
    assert len(prompt.split()) > 2 * BATCHED_TOKENS
    texts = [generate(served.triton, prompt, seed=seed, **how) for seed in (7, *range(7, 17))]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1
    assert 0 == metric(served.triton, "triton_vllm:engine_restarts_total")


def test_a_reload_in_place_says_what_to_do(served: Limited) -> None:
    """The old instance has the port, and serves on. The next module unloads it, and loads it."""
    server = served.triton
    (server.repository / "vllm/config.pbtxt").touch()  # else Triton keeps what is loaded
    error = server.load("vllm")
    assert f'"serving.openai": 127.0.0.1:{served.port}: Address already in use' in error
    assert "a loaded model that has the port, this one included, must be unloaded first" in error
    assert 2 == served.completions(tokens=2).usage.completion_tokens

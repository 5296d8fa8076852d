"""Requests to the real model on the real server: texts, tensors, errors, endpoints."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from tests.e2e.grpc_requests import Request, Response, ask, generate, refusal, sampling
from tests.e2e.triton_server import TritonServer

FRANCE = "The capital of France is"
ONE_PROMPT = "a request has one prompt: text_input, input_ids, messages or PROMPT"
PARIS = " Paris"
GREEDY = sampling()


def texts_of(responses: list[Response], output: str = "text_output") -> list[str]:
    """Return the text of each response. Raise on errors and on outputs that were not requested."""
    assert [] == [response.error for response in responses if response.error]
    assert {(output,)} == {tuple(response.outputs) for response in responses}
    return [text for response in responses for (text,) in response.outputs.values()]


def error_of(responses: list[Response]) -> str:
    """Return the error that is the only response."""
    (response,) = responses
    assert response.error, response
    return response.error


def test_greedy_text(triton: TritonServer) -> None:
    """The model knows the capital of France."""
    assert generate(triton, FRANCE).startswith(PARIS)


def test_streamed_equals_not_streamed(triton: TritonServer) -> None:
    """The deltas of a stream add up to the text that comes whole."""
    inputs = {"text_input": FRANCE, "stream": True, "sampling_parameters": sampling(max_tokens=20)}
    assert generate(triton, FRANCE, max_tokens=20) == "".join(texts_of(ask(triton, inputs)))


def test_deltas_arrive_one_by_one(triton: TritonServer) -> None:
    """A stream is spread over the time that the text takes, and does not come in one piece."""
    parameters = sampling(max_tokens=24, ignore_eos=True)
    inputs = {"text_input": FRANCE, "stream": True, "sampling_parameters": parameters}
    responses = ask(triton, inputs)
    assert len(texts_of(responses)) > 12
    times = [response.seconds for response in responses]
    assert sorted(times) == times
    assert times[0] < times[-1] / 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_final_flag_is_on_the_last_response_only(triton: TritonServer, stream: bool) -> None:
    """Exactly one response is final, the last, and it is no empty one."""
    inputs = {"text_input": FRANCE, "stream": stream, "sampling_parameters": GREEDY}
    responses = ask(triton, inputs)
    assert len(texts_of(responses)) == len(responses)
    finals = [response.final for response in responses]
    assert [False] * (len(responses) - 1) + [True] == finals


@pytest.mark.parametrize(
    ("inputs", "echoed"),
    [
        ({}, True),
        ({"exclude_input_in_output": False}, True),
        ({"exclude_input_in_output": True}, False),
        ({"stream": True}, False),
        ({"stream": True, "exclude_input_in_output": True}, False),
    ],
    ids=["default", "include", "exclude", "streamed", "streamed, exclude"],
)
def test_the_prompt_in_the_output(
    triton: TritonServer, inputs: dict[str, Any], echoed: bool
) -> None:
    """A whole text begins with the prompt unless it is excluded; a stream never does."""
    responses = ask(triton, {"text_input": FRANCE, "sampling_parameters": GREEDY, **inputs})
    text = "".join(texts_of(responses))
    assert text.startswith((FRANCE if echoed else "") + PARIS)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_of_the_2023_tutorial(triton: TritonServer, stream: bool) -> None:
    """The tutorial's client passes unchanged: each TEXT is the prompt and all text so far."""
    results: SimpleQueue[Any] = SimpleQueue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        # What follows is how that client made its requests.
        sampling_parameters = {"temperature": "0.1", "top_p": "0.95", "seed": "1"}
        inputs = [grpcclient.InferInput("PROMPT", [1], "BYTES")]
        inputs[-1].set_data_from_numpy(np.array([FRANCE.encode("utf-8")], dtype=np.object_))
        inputs.append(grpcclient.InferInput("STREAM", [1], "BOOL"))
        inputs[-1].set_data_from_numpy(np.array([stream], dtype=bool))
        inputs.append(grpcclient.InferInput("SAMPLING_PARAMETERS", [1], "BYTES"))
        parameters = {**sampling_parameters, "max_tokens": "6"}
        data = np.array([json.dumps(parameters).encode("utf-8")], dtype=np.object_)
        inputs[-1].set_data_from_numpy(data)
        client.start_stream(lambda result, error: results.put((result, error)))
        client.async_stream_infer(
            model_name="vllm",
            inputs=inputs,
            outputs=[grpcclient.InferRequestedOutput("TEXT")],
            request_id="0",
            parameters=sampling_parameters,
        )
        client.stop_stream()
    texts = []
    while not results.empty():
        result, error = results.get()
        assert error is None
        texts.append(result.as_numpy("TEXT")[0].decode("utf-8"))
    assert (len(texts) > 1) == stream
    assert texts[0].startswith(FRANCE)
    assert texts[-1].startswith(FRANCE + PARIS)
    for earlier, later in pairwise(texts):
        assert later.startswith(earlier)
        assert len(later) > len(earlier) or later is texts[-1]


@pytest.mark.parametrize(
    ("prompt", "asked", "expected"),
    [
        ("text_input", (), "text_output"),
        ("PROMPT", (), "TEXT"),
        ("text_input", ("text_output",), "text_output"),
        ("PROMPT", ("TEXT",), "TEXT"),
        ("text_input", ("TEXT",), "TEXT"),
    ],
    ids=["none named", "none named, tutorial", "named", "named, tutorial", "the other"],
)
def test_a_response_has_only_the_output_asked_for(
    triton: TritonServer, prompt: str, asked: tuple[str, ...], expected: str
) -> None:
    """The output is the one named; where none is, the one that belongs to the prompt's name."""
    names = {"text_input": "sampling_parameters", "PROMPT": "SAMPLING_PARAMETERS"}
    inputs = {prompt: FRANCE, names[prompt]: sampling(max_tokens=1)}
    assert FRANCE + PARIS == texts_of(ask(triton, inputs, outputs=asked), expected)[-1]


def test_three_sequences(triton: TritonServer) -> None:
    """With n=3 the output has three elements, streamed or not, and the same texts by seed."""
    parameters = sampling(n=3, temperature=0.8, seed=7, max_tokens=6, ignore_eos=True)
    inputs = {"text_input": FRANCE, "sampling_parameters": parameters}
    (whole,) = ask(triton, {**inputs, "exclude_input_in_output": True})
    streamed = ask(triton, {**inputs, "stream": True})
    assert not whole.error
    assert len(streamed) > 1
    assert {3} == {len(response.outputs["text_output"]) for response in streamed}
    parts = zip(*(response.outputs["text_output"] for response in streamed), strict=True)
    assert whole.outputs["text_output"] == tuple("".join(part) for part in parts)


LONG = "=" * 20_000  # some 300 tokens, and more text than travels with the FINAL flag


@pytest.mark.parametrize("prompt", ["text_input", "PROMPT"])
def test_a_large_answer_is_one_response(triton: TritonServer, prompt: str) -> None:
    """A long echoed prompt comes back whole, in one response and a bare FINAL flag after it."""
    names = {"text_input": "sampling_parameters", "PROMPT": "SAMPLING_PARAMETERS"}
    answer, end = ask(triton, {prompt: LONG, names[prompt]: sampling(max_tokens=2)})
    ((text,),) = answer.outputs.values()
    assert text.startswith(LONG)
    assert (False, True, {}) == (answer.final, end.final, end.outputs)


def test_a_large_answer_over_http(triton: TritonServer) -> None:
    """The generate endpoint, which takes exactly one response, gets it."""
    body = {"text_input": LONG, "parameters": {"max_tokens": 2, "temperature": 0}}
    status, answer = triton.post("v2/models/vllm/generate", body)
    assert 200 == status, answer
    assert json.loads(answer)["text_output"].startswith(LONG)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_token_counts(triton: TritonServer, stream: bool) -> None:
    """num_output_tokens counts each response's tokens, sequence by sequence."""
    inputs = {
        "text_input": "Once upon a time",
        "stream": stream,
        "return_num_output_tokens": True,
        "sampling_parameters": sampling(n=2, temperature=0.8, max_tokens=5, ignore_eos=True),
    }
    responses = ask(triton, inputs)
    counts = [
        [int(count) for count in r.outputs["num_output_tokens"]] for r in responses if r.outputs
    ]
    assert [5, 5] == [sum(sequence) for sequence in zip(*counts, strict=True)]


def test_max_tokens_fills_the_context(triton: TritonServer) -> None:
    """A request without max_tokens gets more than vLLM's own default of 16 tokens."""
    prompt = "one two three four " * 120  # 480 of the 512 tokens
    short = generate(triton, prompt, max_tokens=16, ignore_eos=True)
    full = generate(triton, prompt, max_tokens=None, ignore_eos=True)
    assert full.startswith(short)
    assert len(full) > len(short)


BAD_REQUESTS = {
    "unknown key": (
        {"sampling_parameters": '{"temprature": 0.1}'},
        'sampling_parameters: unknown key "temprature", did you mean "temperature"?',
    ),
    "wrong type": (
        {"sampling_parameters": '{"max_tokens": "many"}'},
        'sampling_parameters: "max_tokens": Input should be a valid integer',
    ),
    "out of range": (
        {"sampling_parameters": '{"top_p": 2}'},
        "sampling_parameters: top_p must be in (0, 1], got 2.0",
    ),
    "malformed": (
        {"sampling_parameters": '{"temperature": 0.1'},
        "sampling_parameters: not JSON: Expecting ',' delimiter (line 1, column 20)",
    ),
    "no object": (
        {"sampling_parameters": "[1]"},
        "sampling_parameters: must be a JSON object, got [1]",
    ),
    "NaN": (
        {"sampling_parameters": '{"temperature": NaN}'},
        "sampling_parameters: not JSON: NaN is not allowed",
    ),
    "too long a prompt": ({"text_input": "one two three four " * 150}, "512"),
    "not UTF-8": (
        {"text_input": b"caf\xe9"},
        "text_input: not UTF-8: byte 0xe9 at offset 3",
    ),
    "both prompts": (
        {"PROMPT": FRANCE},
        f"PROMPT: came beside text_input; {ONE_PROMPT}",
    ),
    "prompt in a stream": (
        {"stream": True, "exclude_input_in_output": False},
        "exclude_input_in_output: must be true, or absent, when stream is true",
    ),
}


@pytest.mark.parametrize(("inputs", "expected"), BAD_REQUESTS.values(), ids=list(BAD_REQUESTS))
def test_a_bad_request_is_refused_and_the_next_served(
    triton: TritonServer, inputs: dict[str, Any], expected: str
) -> None:
    """A wrong request gets one error with the reason; the next request gets its text."""
    assert expected in error_of(ask(triton, {"text_input": FRANCE, **inputs}))
    assert PARIS == generate(triton, FRANCE, max_tokens=1)


def test_a_request_without_a_prompt_is_refused(triton: TritonServer) -> None:
    """A request without a prompt gets an error that names the inputs for it."""
    expected = f"text_input: missing; {ONE_PROMPT}"
    assert expected in error_of(ask(triton, {"stream": True}))
    assert PARIS == generate(triton, FRANCE, max_tokens=1)


def test_a_bad_request_is_the_clients_fault(triton: TritonServer) -> None:
    """The status is INVALID_ARG, and HTTP's 400."""
    mistake = {"temprature": 0.1}
    inputs = {"text_input": FRANCE, "sampling_parameters": json.dumps(mistake)}
    status, message = refusal(triton, inputs)
    assert ("INVALID_ARGUMENT", True) == (status, 'unknown key "temprature"' in message)
    body = {"text_input": FRANCE, "parameters": mistake}
    code, answer = triton.post("v2/models/vllm/generate", body)
    assert 400 == code
    assert 'unknown key "temprature"' in json.loads(answer)["error"]


@pytest.mark.parametrize("nested", [True, False], ids=["in parameters", "at top level"])
def test_http_generate(triton: TritonServer, nested: bool) -> None:
    """The generate endpoint answers with the prompt and the text."""
    parameters = {"temperature": 0, "max_tokens": 1}
    how = {"parameters": parameters} if nested else parameters
    status, answer = triton.post("v2/models/vllm/generate", {"text_input": FRANCE, **how})
    assert (200, FRANCE + PARIS) == (status, json.loads(answer).get("text_output"))


@pytest.mark.parametrize("nested", [True, False], ids=["in parameters", "at top level"])
def test_http_generate_stream(triton: TritonServer, nested: bool) -> None:
    """The generate_stream endpoint sends an event for each delta."""
    parameters = {"temperature": 0, "max_tokens": 8}
    how = {"parameters": parameters} if nested else parameters
    body = {"text_input": FRANCE, "stream": True, **how}
    status, answer = triton.post("v2/models/vllm/generate_stream", body)
    assert 200 == status
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: ")]
    assert len(events) > 1
    assert generate(triton, FRANCE) == "".join(event["text_output"] for event in events)


def test_http_generate_with_the_json_tensor(triton: TritonServer) -> None:
    """The generate endpoint takes sampling_parameters as a string too."""
    body = {"text_input": FRANCE, "sampling_parameters": sampling(max_tokens=1)}
    status, answer = triton.post("v2/models/vllm/generate", body)
    assert (200, FRANCE + PARIS) == (status, json.loads(answer).get("text_output"))


def test_many_at_once(triton: TritonServer) -> None:
    """Of 32 concurrent requests, streamed and not, each gets the text of its own prompt."""
    prompts = [FRANCE, "Hello, my name is", "The future of AI is", "One, two, three,"]
    parameters = sampling(max_tokens=6)
    together = threading.Barrier(32)

    def answer(number: int) -> str:
        inputs = {
            "text_input": prompts[number % 4],
            "stream": number % 3 == 0,
            "exclude_input_in_output": True,
            "sampling_parameters": parameters,
        }
        together.wait(30)
        return "".join(texts_of(ask(triton, inputs)))

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(answer, range(32)))
    for number, prompt in enumerate(prompts):
        # Batches of different sizes may round differently: compare the first words.
        expected = generate(triton, prompt, max_tokens=6)
        assert {expected} == set(answers[number::4]), prompt


def test_cancelling_ends_the_request_in_the_engine(triton: TritonServer) -> None:
    """A client that cancels its stream frees its place in the engine's batch."""
    since = triton.log_size()
    parameters = sampling(max_tokens=400, ignore_eos=True)
    inputs = {"text_input": FRANCE, "stream": True, "sampling_parameters": parameters}
    with Request(triton, inputs) as request:
        assert not request.next().error
    assert "Request" in triton.await_log("aborted", since=since, seconds=30)
    assert PARIS == generate(triton, FRANCE, max_tokens=1)

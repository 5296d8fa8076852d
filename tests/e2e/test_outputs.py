"""What a client may ask for beside the text, on the real server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.grpc_requests import Response, ask, generate, sampling
from tests.e2e.model_folder import CHECKPOINT
from tests.e2e.triton_server import TritonServer

PROMPT = "In this example,"
FLAGS = (
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "return_output_ids",
    "return_stop_reason",
    "return_prompt_logprobs",
    "return_num_cached_tokens",
)
MAX_TOKENS = 4

# Of each flag: absent, true, false; of logprobs: absent, 0, 2. And all flags together.
Case = tuple[bool, tuple[tuple[str, bool], ...], int | None]
CASES: list[Case] = [
    (stream, flags, logprobs)
    for stream, logprobs in itertools.product((True, False), (None, 0, 2))
    for flags in (
        (),
        *(((flag, value),) for flag, value in itertools.product(FLAGS, (True, False))),
        tuple((flag, True) for flag in FLAGS),
        tuple((flag, number % 2 == 0) for number, flag in enumerate(FLAGS)),
    )
]


def id_of(case: Case) -> str:
    stream, flags, logprobs = case
    said = ["+" + flag[7:] if value else "-" + flag[7:] for flag, value in flags]
    return f"{'streamed' if stream else 'whole'} logprobs={logprobs} {' '.join(said)}"


@pytest.fixture(scope="module")
def answers(triton: TritonServer) -> Iterator[Mapping[Case, list[Response]]]:
    """The responses to each case; the requests run eight at a time."""

    def answer(case: Case) -> list[Response]:
        stream, flags, logprobs = case
        parameters = {"max_tokens": MAX_TOKENS, "logprobs": logprobs, "ignore_eos": True}
        inputs = {
            "text_input": PROMPT,
            "stream": stream,
            **dict(flags),
            "sampling_parameters": sampling(**parameters),
        }
        return ask(triton, inputs, seconds=100)

    with ThreadPoolExecutor(8) as pool:
        yield dict(zip(CASES, pool.map(answer, CASES), strict=True))


@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_what_is_asked_for_comes_and_nothing_else(
    answers: Mapping[Case, list[Response]], case: Case
) -> None:
    """Each response holds the text and the outputs whose flag is true, and they agree."""
    stream, flags, logprobs = case
    responses = answers[case]
    asked = {flag.removeprefix("return_") for flag, value in flags if value}
    for response in responses:
        assert not response.error
        assert {"text_output"} | asked == set(response.outputs)
    assert stream == (len(responses) > 1)
    for name in asked:
        columns = [response.outputs[name] for response in responses]
        assert {1} == {len(column) for column in columns} or name == "output_ids"
        CHECKS[name]([column[0] for column in columns], logprobs)
    if {"logprobs", "num_output_tokens"} <= asked and logprobs is not None:
        for response in responses:
            positions = json.loads(response.outputs["logprobs"][0])
            assert int(response.outputs["num_output_tokens"][0]) == len(positions)
            assert len(response.outputs.get("output_ids", positions)) == len(positions)
            text = "".join(decoded_of_rank_one(position) for position in positions)
            assert (text if stream else PROMPT + text) == response.outputs["text_output"][0]


def decoded_of_rank_one(position: Mapping[str, Mapping[str, Any]]) -> str:
    (decoded,) = [entry["decoded_token"] for entry in position.values() if entry["rank"] == 1]
    return str(decoded)


def check_finish_reason(values: list[str], _: int | None) -> None:
    assert ["None"] * (len(values) - 1) + ["length"] == values


def check_stop_reason(values: list[str], _: int | None) -> None:
    assert {"null"} == set(values)


def check_cumulative_logprob(values: list[str], _: int | None) -> None:
    sums = [float(value) for value in values]
    assert all(later < earlier <= 0 for earlier, later in itertools.pairwise([0.0, *sums]))


def check_logprobs(values: list[str], logprobs: int | None) -> None:
    if logprobs is None:
        assert {"null"} == set(values)
        return
    positions = [position for value in values for position in json.loads(value)]
    assert len(positions) == MAX_TOKENS
    for position in positions:
        assert 1 <= len(position) <= logprobs + 1
        for token_id, entry in position.items():
            assert int(token_id) >= 0
            assert {"logprob", "rank", "decoded_token"} == set(entry)
            assert entry["logprob"] <= 0
        assert decoded_of_rank_one(position)


def check_num_input_tokens(values: list[str], _: int | None) -> None:
    assert {"4"} == set(values)


def check_num_output_tokens(values: list[str], _: int | None) -> None:
    assert MAX_TOKENS == sum(int(value) for value in values)


def check_output_ids(values: list[str], _: int | None) -> None:
    assert all(int(value) > 0 for value in values)


def check_prompt_logprobs(values: list[str], _: int | None) -> None:
    assert {"null"} == set(values)  # the sampling parameter of that name was not sent


def check_num_cached_tokens(values: list[str], _: int | None) -> None:
    assert {"0"} == set(values)  # the prompt is shorter than a block of the cache


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_each_sequence_has_its_own(triton: TritonServer, stream: bool) -> None:
    """With n=3 each output has an element for each sequence, in its place in every response."""
    inputs = {
        "text_input": "Once upon a time",
        "stream": stream,
        "exclude_input_in_output": True,
        "sampling_parameters": sampling(
            n=3, temperature=0.9, seed=5, max_tokens=12, stop=[" a", ","], logprobs=0
        ),
        **dict.fromkeys(FLAGS, True),
    }
    responses = ask(triton, inputs)
    per_sequence = ("text_output", "finish_reason", "cumulative_logprob", "logprobs", "stop_reason")
    for response in responses:
        assert not response.error
        assert {3} == {len(response.outputs[name]) for name in per_sequence}
        counts = [int(count) for count in response.outputs["num_output_tokens"]]
        assert len(response.outputs["output_ids"]) == sum(counts)
        lists = [json.loads(each) for each in response.outputs["logprobs"]]
        assert counts == [len(each) for each in lists]
    for sequence in range(3):
        ends = [r.outputs["finish_reason"][sequence] for r in responses]
        (end,) = [reason for reason in ends if reason != "None"]
        stops = [json.loads(r.outputs["stop_reason"][sequence]) for r in responses]
        stopped = [stop for stop in stops if stop is not None]
        assert ([] if end == "length" else 1) == ([] if not stopped else len(stopped))
        assert set(stopped) <= {" a", ","}
        sums = [float(r.outputs["cumulative_logprob"][sequence]) for r in responses]
        assert sums == sorted(sums, reverse=True)
        chosen = [
            next(iter(position.values()))["logprob"]
            for r in responses
            for position in json.loads(r.outputs["logprobs"][sequence])
        ]
        assert sums[-1] == pytest.approx(sum(chosen), abs=1e-3)


def test_token_ids_in_and_out(triton: TritonServer) -> None:
    """The ids of a prompt and its answer, sent as a prompt, are continued like the text."""
    inputs = {
        "text_input": "The capital of France is",
        "stream": True,
        "return_output_ids": True,
        "sampling_parameters": sampling(max_tokens=3, prompt_logprobs=0),
        "return_prompt_logprobs": True,
    }
    responses = ask(triton, inputs)
    first, *later = (json.loads(r.outputs["prompt_logprobs"][0]) for r in responses)
    assert {None} == set(later)
    assert first[0] is None
    assert all(len(position) >= 1 for position in first[1:])
    new = [int(each) for r in responses for each in r.outputs["output_ids"]]
    assert 3 == len(new)
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text())["model"]["vocab"]
    ids = [vocabulary["The"], *(int(next(iter(position))) for position in first[1:])]
    whole = generate(triton, "The capital of France is", max_tokens=6)
    asked = {"input_ids": [*ids, *new], "sampling_parameters": sampling(max_tokens=3)}
    (rest,) = ask(triton, asked)
    assert not rest.error
    (text,) = rest.outputs["text_output"]
    assert whole.endswith(text)
    assert text


def test_tokens_of_the_cache_are_counted(triton: TritonServer) -> None:
    """A second request finds the prompt in the prefix cache, but not under another salt."""

    def cached(salt: str) -> int:
        parameters = sampling(max_tokens=1, cache_salt=salt)
        asked = {"text_input": "a b c d " * 100, "return_num_cached_tokens": True}
        (response,) = ask(triton, {**asked, "sampling_parameters": parameters})
        assert not response.error
        return int(response.outputs["num_cached_tokens"][0])

    assert 0 == cached("first")
    assert 0 < cached("first")
    assert 0 == cached("second")

"""Outputs that go to a function and not through vLLM's queue, on a real engine."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.tiny_engine import CHECKPOINT, all_outputs, engine_args, one_thread, running
from tests.tiny_llama import make_tiny_llama
from tests.unit.fakes import FakeRequest
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.requests import Generation, TextPrompt
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render import text as vllm_text

pytestmark = pytest.mark.timeout(300)

TOKENS = 12
TWO = {"n": 2, "seed": 3, "temperature": 1.0}


class PanicError(BaseException):
    """A panic of Rust's, as it comes out of pyo3: no Exception."""


class Answers:
    """What one engine has answered."""

    def __init__(self) -> None:
        self.plain: list[Any] = []  # (index, token ids, text) of each completion of each output
        self.taken: list[Any] = []
        self.two: tuple[list[Any], list[Any]] = ([], [])
        self.yielded: list[Any] = []
        self.errors: list[BaseException] = []
        self.beside: list[Any] = []
        self.left: list[int] = []
        self.is_kept = True  # the function of a request that has ended


async def render(llm: Any, **given: Any) -> Generation:
    """Render a streamed request of ``TOKENS`` tokens through the package."""
    parameters = {"temperature": 0, "ignore_eos": True, "max_tokens": TOKENS, **given}
    inputs = {
        "text_input": "The capital of France is",
        "stream": True,
        "sampling_parameters": json.dumps(parameters),
    }
    request = decode(FakeRequest(inputs), SamplingParser({}))
    assert isinstance(request.prompt, TextPrompt)
    return await vllm_text.render(llm, request.prompt, request, None)


def shown(outputs: list[Any]) -> list[Any]:
    """Return each new piece of text, whatever output it came with."""
    return [(c.index, list(c.token_ids), c.text) for output in outputs for c in output.outputs]


async def yielded(generation: Generation, take: Callable[[Any], None] | None) -> list[Any]:
    """Return what the generator itself yields."""
    return [output async for output in generation.outputs(take)]


async def caught(generation: Generation, take: Callable[[Any], None]) -> BaseException:
    """Return how a generation ends, which is not well."""
    try:
        outputs = await yielded(generation, take)
    except (ValueError, PanicError) as error:
        return error
    raise AssertionError(f"it went well: {outputs}")


async def ask_all(args: Any, config: Any) -> Answers:
    """Start the engine and ask it everything, once."""
    answers = Answers()
    async with running(args, config) as llm:
        answers.is_kept = await keeps_the_function(llm)  # the first request starts vLLM's tasks
        answers.plain = shown(await yielded(await render(llm), None))
        answers.taken = shown(await all_outputs(await render(llm)))
        answers.two = (
            shown(await yielded(await render(llm, **TWO), None)),
            shown(await all_outputs(await render(llm, **TWO))),
        )
        answers.yielded = await yielded(await render(llm), lambda _: None)
        await ask_with_failures(llm, answers)
    return answers


async def keeps_the_function(llm: Any) -> bool:
    """Return whether anything refers to the function of a request that has ended."""

    def take(_: Any) -> None:
        pass

    kept = weakref.ref(take)
    await yielded(await render(llm), take)
    del take
    return kept() is not None


async def ask_with_failures(llm: Any, answers: Answers) -> None:
    """Send requests whose functions fail, beside one whose function does not; then cancel one."""
    for failure in (ValueError("no such text"), PanicError("in Rust")):

        def fail(_: Any, failure: BaseException = failure) -> None:
            raise failure

        ends: list[Any] = await asyncio.gather(
            all_outputs(await render(llm)),
            caught(await render(llm, max_tokens=200), fail),
        )
        beside, error = ends
        answers.errors.append(error)
        answers.beside.append(shown(beside))
        answers.left.append(len(llm.output_processor.request_states))
    begun = asyncio.Event()
    generation = await render(llm, max_tokens=200)
    cancelled = asyncio.create_task(yielded(generation, lambda _: begun.set()))
    await asyncio.wait_for(begun.wait(), 60)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    answers.left.append(len(llm.output_processor.request_states))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers of a tiny engine."""
    model = make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", CHECKPOINT)
    args = engine_args(model)
    with one_thread():
        return asyncio.run(ask_all(args, vllm_api.create_config(args)))


def whole(pieces: list[Any], index: int) -> tuple[list[int], str]:
    """Join what came of one sequence."""
    mine = [(ids, text) for i, ids, text in pieces if i == index]
    return [token for ids, _ in mine for token in ids], "".join(text for _, text in mine)


def test_the_answer_is_the_same(answers: Answers) -> None:
    """In the same order, of one sequence and of two."""
    assert TOKENS == len(whole(answers.plain, 0)[0])
    assert whole(answers.plain, 0) == whole(answers.taken, 0)
    plain, taken = answers.two
    assert [whole(plain, 0), whole(plain, 1)] == [whole(taken, 0), whole(taken, 1)]
    assert [TOKENS] * 2 == [len(whole(taken, number)[0]) for number in range(2)]


def test_only_the_end_wakes_the_requests_task(answers: Answers) -> None:
    """The generator yields the last output, and what came before the function was in place."""
    assert answers.yielded[-1].finished
    assert len(answers.yielded) <= 2
    assert len(whole(shown(answers.yielded), 0)[0]) < TOKENS


def test_what_the_function_raises_ends_its_request_alone(answers: Answers) -> None:
    """Its task gets the error as it was; the request beside it gets its answer."""
    assert [ValueError, PanicError] == [type(error) for error in answers.errors]
    assert ["no such text", "in Rust"] == [str(error) for error in answers.errors]
    assert [whole(answers.plain, 0)] * 2 == [whole(beside, 0) for beside in answers.beside]


def test_nothing_keeps_the_function(answers: Answers) -> None:
    """Neither a task of vLLM's nor, until the next garbage collection, a cycle."""
    assert not answers.is_kept


def test_a_request_that_ends_early_is_aborted(answers: Answers) -> None:
    """By an error of the function's, or because its client has left."""
    assert [0, 0, 0] == answers.left

"""What a request's outputs come through, on a real engine: a function, and the generator's end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.tiny_engine import CHECKPOINT, all_outputs, engine_args, one_thread, running
from tests.tiny_llama import make_tiny_llama
from tests.unit.fakes import FakeRequest
from triton_vllm.errors import ServingError
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
        self.yielded: list[bool] = []  # whether what the generator yielded was final
        self.errors: list[ServingError] = []
        self.beside: list[Any] = []
        self.left: list[int] = []
        self.others: list[bool] = []


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


async def ask_all(args: Any, config: Any) -> Answers:
    """Start the engine and ask it everything, once."""
    answers = Answers()
    async with running(args, config) as llm:
        answers.plain = shown(await yielded(await render(llm), None))
        answers.taken = shown(await all_outputs(await render(llm)))
        answers.two = (
            shown(await yielded(await render(llm, **TWO), None)),
            shown(await all_outputs(await render(llm, **TWO))),
        )
        taken: list[Any] = []
        last = await yielded(await render(llm), taken.append)
        answers.yielded = [output.finished for output in last]
        answers.others = [output.finished for output in taken]
        await ask_in_vain(llm, answers)
    return answers


async def ask_in_vain(llm: Any, answers: Answers) -> None:
    """Take with functions that fail, beside a request that does not; then cancel one."""
    for failure in (ValueError("no such text"), PanicError("in Rust")):

        def fail(_: Any, failure: BaseException = failure) -> None:
            raise failure

        ends: list[Any] = await asyncio.gather(
            all_outputs(await render(llm)),
            yielded(await render(llm), fail),
            return_exceptions=True,
        )
        beside, failing = ends
        assert isinstance(failing, Exception), failing
        assert isinstance(beside, list), beside
        answers.errors.append(vllm_api.to_serving_error(failing))
        answers.beside.append(shown(beside))
        answers.left.append(len(llm.output_processor.request_states))
    begun = asyncio.Event()
    generation = await render(llm, max_tokens=200)
    cancelled = asyncio.create_task(yielded(generation, lambda _: begun.set()))
    await begun.wait()
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
    assert answers.plain == answers.taken
    plain, taken = answers.two
    assert [whole(plain, 0), whole(plain, 1)] == [whole(taken, 0), whole(taken, 1)]
    assert [TOKENS] * 2 == [len(whole(taken, number)[0]) for number in range(2)]


def test_only_the_end_wakes_the_requests_task(answers: Answers) -> None:
    """The generator yields the last output; each one before went to the function, once."""
    assert [True] == answers.yielded[-1:]
    assert len(answers.yielded) <= 2  # one may have come before the function was in place
    assert [False] * (TOKENS - len(answers.yielded)) == answers.others


def test_what_the_function_raises_ends_its_request_alone(answers: Answers) -> None:
    """The request gets the error, and leaves the engine; the one beside it gets its answer."""
    assert ["no such text", "in Rust"] == [str(error) for error in answers.errors]
    assert [whole(answers.plain, 0)] * 2 == [whole(beside, 0) for beside in answers.beside]


def test_a_request_that_ends_early_is_aborted(answers: Answers) -> None:
    """By an error of the function's, or because its client has left."""
    assert [0, 0, 0] == answers.left

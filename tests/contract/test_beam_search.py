"""Beam search on a real engine, with the parameters that newer versions of it heed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.contract.tiny_engine import CHECKPOINT, all_outputs, engine_args, one_thread, running
from tests.tiny_llama import make_tiny_llama
from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.requests import TextPrompt
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.text import beam_search_names

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not {"allowed_token_ids", "priority"} <= beam_search_names(), reason="newer than vLLM 0.32"
    ),
]

ALLOWED = [28, 30, 260, 7042]
LENGTH = 3
ALLOWLIST = {"n": 3, "allowed_token_ids": ALLOWED}
PRIORITY = 7


class Answers:
    """What one engine has answered: to each request a list of (token ids, log probability)."""

    def __init__(self) -> None:
        self.plain: list[Any] = []
        self.first: dict[int, float] = {}  # log probabilities of the allowed tokens
        self.allowed: list[Any] = []
        self.has_newer_runner = False
        self.refused = ""
        self.priorities: set[int] = set()


async def ask(llm: Any, **given: Any) -> list[Any]:
    """Send one request through the package; return the sequences of its last output."""
    inputs = {"text_input": "The capital of France is", "sampling_parameters": json.dumps(given)}
    request = decode(FakeRequest(inputs), SamplingParser({}))
    assert isinstance(request.prompt, TextPrompt)
    generation = await vllm_text.render(llm, request.prompt, request, None)
    (output,) = await all_outputs(generation)
    assert generation.read(output).final
    return list(output.outputs)


async def beams(llm: Any, **given: Any) -> list[tuple[tuple[int, ...], float]]:
    """Return the sequences of a beam search, the best first."""
    found = await ask(llm, use_beam_search=True, ignore_eos=True, **given)
    return [(tuple(each.token_ids), each.cumulative_logprob) for each in found]


async def ask_all(args: Any, config: Any) -> Answers:
    """Start the engine and ask it everything, once."""
    answers = Answers()
    async with running(args, config) as llm:
        add = llm.engine_core.add_request_async
        answers.plain = await beams(llm, n=2, max_tokens=LENGTH)
        (greedy,) = await ask(llm, max_tokens=1, logprobs=None, logprob_token_ids=ALLOWED)
        answers.first = {token: greedy.logprobs[0][token].logprob for token in ALLOWED}
        await ask_with_an_allowlist(llm, answers)

        async def add_noted(request: Any) -> None:
            answers.priorities.add(request.priority)
            await add(request)

        llm.engine_core.add_request_async = add_noted
        await beams(llm, n=2, max_tokens=LENGTH, priority=PRIORITY)
    return answers


async def ask_with_an_allowlist(llm: Any, answers: Answers) -> None:
    """Ask as a client, and once more as if this engine had vLLM's V2 runner.

    vLLM admits such beams to that runner alone, which needs Triton's compiler and so a GPU. The
    older one is right where all rows of a batch have the same list, as here.
    """
    answers.has_newer_runner = llm.vllm_config.use_v2_model_runner
    try:
        answers.allowed = await beams(llm, max_tokens=LENGTH, **ALLOWLIST)
    except Exception as error:
        explained = vllm_api.to_serving_error(error)
        assert isinstance(explained, RequestError), explained
        answers.refused = str(explained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(llm.vllm_config), "use_v2_model_runner", True)
        answers.allowed = await beams(llm, max_tokens=LENGTH, **ALLOWLIST)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers of a tiny engine."""
    model = make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", CHECKPOINT)
    args = engine_args(model)
    with one_thread():
        return asyncio.run(ask_all(args, vllm_api.create_config(args)))


def test_beams_are_sorted(answers: Answers) -> None:
    """The best first, each of the length asked for, all different."""
    sequences, scores = zip(*answers.plain, strict=True)
    assert [LENGTH] * 2 == [len(each) for each in sequences]
    assert 2 == len(set(sequences))
    assert sorted(scores, reverse=True) == list(scores)


def test_each_beam_has_the_requests_priority(answers: Answers) -> None:
    """As the engine gets it with each token's request."""
    assert {PRIORITY} == answers.priorities


def test_beams_are_made_of_the_allowed_tokens(answers: Answers) -> None:
    """All of them, though no unbound beam has such a token; none is better than it may be."""
    sequences, scores = zip(*answers.allowed, strict=True)
    assert [LENGTH] * 3 == [len(each) for each in sequences]
    assert 3 == len(set(sequences))
    assert set(ALLOWED) >= {token for each in sequences for token in each}
    assert not set(ALLOWED) & {token for each, _ in answers.plain for token in each}
    assert sorted(scores, reverse=True) == list(scores)
    # The log probabilities are the model's own, not those among the allowed tokens.
    assert all(score <= answers.first[each[0]] for each, score in answers.allowed)


def test_an_engine_with_the_older_runner_says_so(answers: Answers) -> None:
    """To the client, in vLLM's words."""
    assert answers.has_newer_runner is not ("V2 model runner" in answers.refused)

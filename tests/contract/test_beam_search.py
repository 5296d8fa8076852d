"""Beam search on a real engine, with the parameters that newer versions of it heed."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

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

CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", Path(__file__).resolve().parents[2] / ".cache"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
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
    outputs: list[Any] = []
    async for output in generation.outputs():
        outputs = list(output.outputs)
        assert generation.read(output).final
    return outputs


async def beams(llm: Any, **given: Any) -> list[tuple[tuple[int, ...], float]]:
    """Return the sequences of a beam search, the best first."""
    found = await ask(llm, use_beam_search=True, ignore_eos=True, **given)
    return [(tuple(each.token_ids), each.cumulative_logprob) for each in found]


async def ask_all(args: Any, config: Any) -> Answers:
    """Start the engine and ask it everything, once."""
    llm = vllm_api.create_engine(args, config)
    answers, add = Answers(), llm.engine_core.add_request_async
    try:
        answers.plain = await beams(llm, n=2, max_tokens=LENGTH)
        (greedy,) = await ask(llm, max_tokens=1, logprobs=None, logprob_token_ids=ALLOWED)
        answers.first = {token: greedy.logprobs[0][token].logprob for token in ALLOWED}
        await ask_with_an_allowlist(llm, answers)

        async def add_noted(request: Any) -> None:
            answers.priorities.add(request.priority)
            await add(request)

        llm.engine_core.add_request_async = add_noted
        await beams(llm, n=2, max_tokens=LENGTH, priority=PRIORITY)
    finally:
        vllm_api.shut_down(llm, 5)
        await asyncio.sleep(1)
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
    args = vllm_api.AsyncEngineArgs(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=1 << 24,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
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

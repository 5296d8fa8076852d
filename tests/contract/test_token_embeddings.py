"""A model that answers for each token, on a real engine, against transformers."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import PoolerConfig

from tests.contract.tiny_engine import all_outputs, engine_args, one_thread, running
from tests.e2e.make_tiny_models import make_encoder
from tests.unit.fakes import FakeRequest
from triton_vllm.config.lora import NoAdapters
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import decode
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import PoolingParser
from triton_vllm.vllm_api.render.renderers import Renderers

pytestmark = pytest.mark.timeout(300)

TEXT = "Paris is in France, and Rome is not."  # a token a byte, and one at each end
CHUNKS = "late_chunking_params"
CHUNK_SIZES = [1, 7, 1000]
HAS_CHUNKS = hasattr(vllm_api.PoolingParams(), CHUNKS)
Rows = Any  # an array of [rows, hidden size]


class Answers:
    """What one engine has answered, and what transformers says of the text's tokens."""

    def __init__(self, states: Rows) -> None:
        self.states = states
        self.tokens: Rows = None
        self.raw_chunks: dict[int, Rows] = {}
        self.chunks: dict[int, Rows] = {}
        self.refused = ""


async def ask(renderers: Renderers, **given: Any) -> Rows:
    """Send one request through the package; return its rows."""
    inputs = {"texts": [TEXT], "pooling_parameters": json.dumps(given)}
    generation = await renderers.render(decode(FakeRequest(inputs), PoolingParser()))
    (output,) = await all_outputs(generation)
    delta = generation.read(output)
    assert delta.final
    assert delta.extras
    assert len(TEXT) + 2 == delta.extras.num_input_tokens
    return delta.extras.embeddings


async def ask_all(args: Any, config: Any, states: Rows) -> Answers:
    """Start the engine and ask it everything, once."""
    answers = Answers(states)
    async with running(args, config) as llm:
        renderers = Renderers(llm, NoAdapters())
        await renderers.prepare(Namespace(chat_template=None))
        answers.tokens = await ask(renderers, use_activation=False)
        for size in CHUNK_SIZES if HAS_CHUNKS else []:
            chunks = {CHUNKS: {"chunk_size": size}}
            answers.raw_chunks[size] = await ask(renderers, use_activation=False, **chunks)
            answers.chunks[size] = await ask(renderers, **chunks)
        try:
            await ask(renderers, **{CHUNKS: {"chunk_size": 0}})
        except RequestError as error:
            answers.refused = str(error)
    return answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The answers of a tiny BERT."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "encoder"
    model, tokenizer = make_encoder(folder, labels=0)
    with torch.inference_mode():
        states = model(**tokenizer(TEXT, return_tensors="pt")).last_hidden_state[0].numpy()
    pooler = PoolerConfig(task="token_embed")
    args = engine_args(folder, runner="pooling", pooler_config=pooler, max_model_len=128)
    with one_thread():
        return asyncio.run(ask_all(args, vllm_api.create_config(args), states))


def means(rows: Rows, size: int) -> Rows:
    """Return the mean of each ``size`` rows."""
    return np.stack([rows[i : i + size].mean(axis=0) for i in range(0, len(rows), size)])


def test_each_token_has_a_row(answers: Answers) -> None:
    """The state that transformers computes for it."""
    np.testing.assert_allclose(answers.tokens, answers.states, atol=2e-4)


@pytest.mark.skipif(not HAS_CHUNKS, reason="newer than vLLM 0.32")
@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_a_chunk_is_the_mean_of_its_tokens(answers: Answers, size: int) -> None:
    """Special tokens and the short last chunk included; normalised unless the request says no."""
    expected = means(answers.states, size)
    np.testing.assert_allclose(answers.raw_chunks[size], expected, atol=2e-4)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(answers.chunks[size], expected / lengths, atol=2e-4)


def test_a_wrong_size_is_refused(answers: Answers) -> None:
    """By the name of the parameter, in every version."""
    assert CHUNKS in answers.refused

"""Speculative decoding by ``ngram``, on a real engine: the same answers as without it."""

from __future__ import annotations

import asyncio
import functools
import json
import operator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest

from tests.contract.tiny_engine import CHECKPOINT, NIGHTLY, all_outputs, engine_args, one_thread
from tests.tiny_llama import make_tiny_llama
from tests.unit.fakes import FakeRequest
from triton_vllm.errors import RequestError
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.requests import Generation, TextPrompt
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.guard import check_greedy, samples_drafts_wrongly
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render import text as vllm_text

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
PROMPT = "The capital of France is " * 30
# The tiny model repeats each word of its text until the penalty tells: many drafts, some wrong.
VARIED = {"temperature": 0, "max_tokens": 60, "frequency_penalty": 2.0}
WORD, NEXT = " Discussion", " Transc"  # of that text
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
}
SAME: dict[str, dict[str, Any]] = {
    "logprobs": {"temperature": 0, "max_tokens": 40, "logprobs": 2},
    "prompt_logprobs": {"temperature": 0, "max_tokens": 4, "prompt_logprobs": 1},
    "ignore_eos": {"temperature": 0, "max_tokens": 40, "ignore_eos": True},
    "frequency_penalty": VARIED,
    "presence_penalty": {"temperature": 0, "max_tokens": 40, "presence_penalty": 2.0},
    "repetition_penalty": {"temperature": 0, "max_tokens": 40, "repetition_penalty": 1.3},
    "stop": VARIED | {"stop": [NEXT]},
    "stop within words": VARIED | {"stop": ["ussion Disc"]},
    "stop in the text": VARIED | {"stop": [NEXT], "include_stop_str_in_output": True},
    "stop_token_ids": VARIED | {"stop_token_ids": [41783]},
    "min_tokens": VARIED | {"stop_token_ids": [41783], "min_tokens": 35},
    "bad_words": VARIED | {"bad_words": ["Discussion", "Transc Transc"]},
    "allowed_token_ids": VARIED | {"allowed_token_ids": [22199, 41783, 30]},
    "repetition_detection": {
        "temperature": 0,
        "max_tokens": 60,
        "repetition_detection": {"max_pattern_size": 3, "min_count": 3},
    },
    "regex": {"temperature": 0, "max_tokens": 30, "structured_outputs": {"regex": "(ab|cd )+"}},
    "json": {"temperature": 0, "max_tokens": 60, "structured_outputs": {"json": SCHEMA}},
    "stream_interval": {"temperature": 0, "max_tokens": 40, "stream_interval": 7},
}
REFUSED: dict[str, dict[str, Any]] = {
    "min_p": {"min_p": 0.1, "temperature": 0.5},
    "logit_bias": {"logit_bias": {"28": 1}},
    "temperature": {"temperature": 0.5},
    "logprob_token_ids": {"logprob_token_ids": [28, 30]},
}


class Trial:
    """One engine, and what it answers."""

    def __init__(self, model: Path, **options: Any) -> None:
        args = engine_args(model, max_model_len=1024, kv_cache_memory_bytes=1 << 26, **options)
        config = vllm_api.create_config(args)
        self.llm = vllm_api.create_engine(args, config)
        self.parser = SamplingParser({})

    async def ask(self, given: dict[str, Any], *, stream: bool) -> Delta:
        """Return all of an answer."""
        generation = await self.render(given, stream=stream)
        deltas = [generation.read(output) for output in await all_outputs(generation)]
        return functools.reduce(operator.add, deltas)

    async def render(self, given: dict[str, Any], *, stream: bool) -> Generation:
        """Return the generation of a request."""
        inputs = {
            "text_input": PROMPT,
            "exclude_input_in_output": True,
            "stream": stream,
            "return_logprobs": True,
            "return_finish_reason": True,
            "sampling_parameters": json.dumps(given),
        }
        request = decode(FakeRequest(inputs), self.parser)
        assert isinstance(request.prompt, TextPrompt)
        return await vllm_text.render(self.llm, request.prompt, request, None)

    async def answers(self) -> dict[str, Any]:
        """Return what each request of ``SAME`` gets, whole and streamed."""
        return {
            f"{name}, {'streamed' if stream else 'whole'}": shown(
                await self.ask(given, stream=stream)
            )
            for name, given in SAME.items()
            if given.keys() <= set(self.parser.parameters.names)  # vLLM 0.26 has fewer
            for stream in (False, True)
        }


def shown(delta: Delta) -> list[Any]:
    """Return what must not differ, the log probabilities to three digits."""
    assert delta.extras is not None
    return [
        (
            text,
            list(sequence.token_ids),
            sequence.finish_reason,
            [
                {token: round(entry.logprob, 3) for token, entry in (position or {}).items()}
                for position in sequence.logprobs or []
            ],
        )
        for text, sequence in zip(delta.texts, delta.extras.sequences, strict=True)
    ]


async def compared(model: Path) -> SimpleNamespace:
    """Return the answers without and with speculation, and what else the latter did."""
    plain = Trial(model)
    try:
        without = await plain.answers()
    finally:
        vllm_api.shut_down(plain.llm, 5)
    trial = Trial(model, speculative_config=NGRAM)
    try:
        found = SimpleNamespace(without=without, with_drafts=await trial.answers(), refused={})
        for name, given in REFUSED.items():
            try:
                await trial.ask({"temperature": 0, "max_tokens": 4, **given}, stream=False)
            except Exception as error:
                found.refused[name] = vllm_api.to_serving_error(error)
        given = {"temperature": 0, "max_tokens": 500, "ignore_eos": True}
        endless = (await trial.render(given, stream=True)).outputs(None)
        assert not (await anext(endless)).finished
        await endless.aclose()
        await asyncio.sleep(1)
        found.running = len(trial.llm.output_processor.request_states)
        found.failed = vllm_api.has_failed(trial.llm)
        samples = [s for metric in prometheus_client.REGISTRY.collect() for s in metric.samples]
        found.metrics = {s.name: s.value for s in samples if "spec_decode" in s.name}
        return found
    finally:
        vllm_api.shut_down(trial.llm, 5)
        await asyncio.sleep(1)


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="nightly")
@pytest.mark.timeout(900)
def test_drafts_change_no_answer(tmp_path: Path) -> None:
    """Greedy texts, finish reasons and log probabilities are those of an engine without drafts.

    A cancelled request ends; what vLLM cannot do is refused; the metrics count the drafts.
    """
    with one_thread():
        found = asyncio.run(compared(make_tiny_llama(tmp_path / "tiny", CHECKPOINT)))
    wrong = {
        name: (answer, found.with_drafts[name])
        for name, answer in found.without.items()
        if answer != found.with_drafts[name]
    }
    assert {} == wrong
    assert WORD in found.without["frequency_penalty, whole"][0][0]
    assert set(REFUSED) == set(found.refused)
    assert {RequestError} == {type(error) for error in found.refused.values()}
    assert (0, False) == (found.running, found.failed)
    accepted = found.metrics["vllm:spec_decode_num_accepted_tokens_total"]
    assert 0 < accepted < found.metrics["vllm:spec_decode_num_draft_tokens_total"]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"temperature": 0.5}, True),
        ({}, True),
        ({"max_tokens": 1, "top_k": 5}, True),
        ({"temperature": 0, "top_k": 5}, False),
        ({"max_tokens": 1}, False),
    ],
    ids=["sampled", "by default", "top_k", "greedy", "one token"],
)
def test_only_greedy_requests_go_with_drafts_on_a_cpu(given: dict[str, Any], refused: bool) -> None:
    """They are refused before the engine sees them; a greedy request has no top_k."""
    params = vllm_api.SamplingParams(**given)
    if not refused:
        check_greedy(params)
        return
    with pytest.raises(RequestError, match='"temperature": must be 0'):
        check_greedy(params)


def test_a_vllm_that_samples_drafts_wrongly_is_found() -> None:
    """It is the kernels' fault: as soon as they write where they should, nothing is refused."""
    assert samples_drafts_wrongly()

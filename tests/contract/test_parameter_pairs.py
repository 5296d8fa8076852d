"""Each pair of parameters, at their edges, on a real engine, which must survive them all."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.tiny_engine import (
    CHECKPOINT,
    NIGHTLY,
    engine_args,
    one_thread,
    running,
)
from tests.tiny_llama import make_tiny_llama
from tests.unit.fakes import FakeRequest, fake_pb_utils
from triton_vllm.errors import RequestError, ServingError
from triton_vllm.protocol.decode import decode
from triton_vllm.protocol.encode import ResponseEncoder
from triton_vllm.protocol.outputs import OUTPUTS
from triton_vllm.protocol.requests import GenerationRequest, TextPrompt
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render import text as vllm_text

AT_ONCE = 64
SECONDS = 60  # of a request: one that takes as long hangs
FLAGS = {output.flag: True for output in OUTPUTS}
# Without a value: those that this engine refuses without another parameter beside them.
NOT_HERE = {"lora_name", "thinking_token_budget", "trace_decode_token_ids", "watermarking"}
EDGES: dict[str, list[Any]] = {
    "n": [2],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [2, -2],
    "repetition_penalty": [0.01, 100],
    "temperature": [0, 2],
    "top_p": [0.01, 1],
    "top_k": [1, -1],
    "min_p": [1, 0],
    "seed": [-1, 2**63 - 1],
    "stop": ["a", [" ", "e"]],
    "stop_token_ids": [[0], [49151]],
    "ignore_eos": [True],
    "max_tokens": [1, 4],
    "min_tokens": [4, 1],
    "logprobs": [0, 20],
    "prompt_logprobs": [0, 20],
    "logprob_token_ids": [[0], [7042, 28]],
    "flat_logprobs": [True],
    "detokenize": [False],
    "skip_special_tokens": [False],
    "spaces_between_special_tokens": [False],
    "include_stop_str_in_output": [True],
    "stream_interval": [1, 100],
    "structured_outputs": [{"choice": ["yes", "no"]}, {"regex": "[ab]+"}],
    "logit_bias": [{"7042": -100}, {"28": 100}],
    "allowed_token_ids": [[30, 28], [0]],
    "bad_words": [["Paris"], ["a", "e"]],
    "repetition_detection": [{"max_pattern_size": 3, "min_count": 2}],
    "skip_reading_prefix_cache": [True, False],
    "routed_experts_prompt_start": [0, 1],
    "priority": [1],
    "cache_salt": ["a"],
    "data_parallel_rank": [0],
    "timeout_seconds": [SECONDS],
    "on_timeout": ["finish"],
    "use_beam_search": [True],
    "length_penalty": [0.5],
}

Outcome = tuple[dict[str, Any], bool, str]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The configuration of a tiny engine, most of whose prompts are in its prefix cache."""
    model = make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", CHECKPOINT)
    args = engine_args(
        model,
        max_num_seqs=AT_ONCE,
        max_num_batched_tokens=1024,  # so that some prompts are computed in parts
        kv_cache_memory_bytes=1 << 26,
    )
    with one_thread():
        yield args, vllm_api.create_config(args)


def pairs(names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each edge, and each pair of parameters once, with one edge and another in turn."""
    for name in names:
        yield from ({name: edge} for edge in EDGES[name])
    turns = {name: itertools.cycle(EDGES[name]) for name in names}
    for one, other in itertools.combinations(names, 2):
        yield {one: next(turns[one]), other: next(turns[other])}


async def ask(llm: Any, parser: SamplingParser, given: dict[str, Any], *, stream: bool) -> str:
    """Send one request; return what is wrong with its end, if anything."""
    parameters = {"max_tokens": 4, "seed": 7, **given}  # seeded: each sweep does the same
    inputs = {
        "text_input": "The capital of France is " * 30,
        "exclude_input_in_output": True,
        "stream": stream,
        "sampling_parameters": json.dumps(parameters),
        **FLAGS,
    }
    try:
        request = decode(FakeRequest(inputs), parser)
        final = await asyncio.wait_for(answer(llm, request), SECONDS)
    except Exception as error:
        explained: ServingError = vllm_api.to_serving_error(error)
        return "" if isinstance(explained, RequestError) else f"{type(error).__name__}: {error}"
    return "" if final else "no end"


async def answer(llm: Any, request: GenerationRequest) -> bool:
    """Generate and encode; return whether there was a last delta."""
    encoder = ResponseEncoder(fake_pb_utils)
    finals: list[bool] = []
    assert isinstance(request.prompt, TextPrompt)
    generation = await vllm_text.render(llm, request.prompt, request, None)

    def send(output: Any) -> None:  # as model.py, in the task that reads the engine
        delta = generation.read(output)
        encoder.of_delta(delta, request)
        finals.append(delta.final)

    async for output in generation.outputs(send):
        send(output)
    return any(finals)


async def sweep(args: Any, config: Any) -> tuple[list[Outcome], bool]:
    """Return what went wrong, and whether the end of the reader is noticed."""
    async with running(args, config) as llm:
        parser = SamplingParser({})
        names = [name for name in EDGES if name in parser.parameters.names]
        assert set(parser.parameters.names) - set(names) <= NOT_HERE
        jobs = list(itertools.product(pairs(names), (False, True)))
        wrong: list[Outcome] = []
        for start in range(0, len(jobs), AT_ONCE):
            batch = jobs[start : start + AT_ONCE]
            ends = await asyncio.gather(
                *(ask(llm, parser, given, stream=stream) for given, stream in batch)
            )
            wrong += [(*job, end) for job, end in zip(batch, ends, strict=True) if end]
            if vllm_api.has_failed(llm):
                pytest.fail(f"one of these ended the engine or its reader: {batch}")
        llm.output_handler.cancel()
        await asyncio.wait([llm.output_handler])
        return wrong, vllm_api.has_failed(llm)


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="nightly")
@pytest.mark.timeout(900)
def test_no_pair_of_parameters_ends_the_engine_or_its_reader(config: Any) -> None:
    """Each is served, or refused as the client's mistake, whole and streamed.

    A reader that has ended counts as a failed engine: here the test cancels it.
    """
    wrong, noticed = asyncio.run(sweep(*config))
    assert [] == wrong
    assert noticed

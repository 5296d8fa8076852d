"""In the place of Triton's own vLLM backend, and of ``vllm serve``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.drop_in import add_ensemble, add_their_model
from tests.e2e.grpc_requests import ask, assert_ended_once, sampling, start_requests
from tests.e2e.model_folder import ENGINE_ARGS
from tests.e2e.triton_server import TritonServer
from tests.e2e.vllm_serve import VllmServe, vllm_serve

pytestmark = pytest.mark.timeout(400)

FRANCE = "The capital of France is"
LIMIT = 8
# Both of ``theirs`` and of ``vllm serve``; their defaults and a limit that clients cannot exceed.
SAME_ARGS = {
    **{key: value for key, value in ENGINE_ARGS.items() if key != "enable_log_requests"},
    "override_generation_config": {"max_new_tokens": LIMIT, "temperature": 0},
    # Sequences join the batch at their own times, and bfloat16 rounds by the batch's size.
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def theirs(triton: TritonServer) -> Iterator[str]:
    """A model whose folder was written for Triton's own backend, beside the model `vllm`."""
    engine_args = SAME_ARGS | {"disable_log_requests": "true", "max_num_seqs": "16"}
    add_their_model(triton.repository, "theirs", engine_args)
    assert "" == triton.load("theirs")
    yield "theirs"
    triton.unload("theirs")
    triton.await_state("theirs", "UNAVAILABLE")


def test_a_folder_for_tritons_own_backend_is_served(triton: TritonServer, theirs: str) -> None:
    """A folder with backend "vllm", 1/model.json and no tensors loads and answers."""
    inputs = {"text_input": FRANCE, "sampling_parameters": sampling(max_tokens=1)}
    (response,) = ask(triton, inputs, model=theirs)
    assert {"text_output": (FRANCE + " Paris",)} == response.outputs


def test_its_configuration_is_completed(triton: TritonServer, theirs: str) -> None:
    """Triton knows the tensors that the folder does not declare, and that it is decoupled."""
    completed, ours = (
        json.loads(triton.get(f"v2/models/{name}/config")) for name in (theirs, "vllm")
    )
    assert completed["model_transaction_policy"] == {"decoupled": True}
    for part in ("input", "output"):
        assert {t["name"] for t in ours[part]} == {t["name"] for t in completed[part]}


def test_two_models_at_once(triton: TritonServer, theirs: str) -> None:
    """Each model answers while the other has work."""
    with contextlib.ExitStack() as stack:
        (running,) = start_requests(triton, stack, 100)
        inputs = {"text_input": FRANCE, "sampling_parameters": sampling(max_tokens=1)}
        (response,) = ask(triton, inputs, model=theirs)
        assert (FRANCE + " Paris",) == response.outputs["text_output"]
        assert_ended_once(running)


def test_an_ensemble_around_the_model(triton: TritonServer, theirs: str) -> None:
    """A pipeline of one step passes tensors in and out, also under other names."""
    add_ensemble(triton.repository, "ensemble")
    assert "" == triton.load("ensemble")
    inputs = {"text_input": "1 2 3 4", "return_num_output_tokens": True}
    parameters = {"temperature": 0, "max_tokens": 3}
    responses = ask(triton, inputs, model="ensemble", parameters=parameters)
    assert "" == responses[0].error
    (text,) = responses[0].outputs["text_output"]
    assert text.startswith("1 2 3 4 ")
    assert ("3",) == responses[0].outputs["tokens"]
    triton.unload("ensemble")
    triton.await_state("ensemble", "UNAVAILABLE")


@pytest.fixture(scope="module")
def peer() -> Iterator[VllmServe]:
    """A ``vllm serve`` with the engine arguments of ``theirs``."""
    with vllm_serve(SAME_ARGS) as server:
        yield server


# Sent to both as they stand.
REQUESTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "greedy": {"temperature": 0, "max_tokens": 6},
    "beyond the limit": {"max_tokens": 100},
    "sampled by seed": {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 7},
    "three by seed": {"temperature": 0.8, "seed": 7, "n": 3},
    "penalties": {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "log probabilities": {"logprobs": 2, "max_tokens": 3},
    "stop": {"stop": [",", "."]},
    "a choice": {"structured_outputs": {"choice": ["red", "green"]}},
    "beams": {"use_beam_search": True, "n": 3, "max_tokens": 4, "length_penalty": 0.8},
    "greedy beams": {"use_beam_search": True, "n": 2, "max_tokens": 3, "temperature": 0},
}


PROMPTS = {
    "text": FRANCE,
    "code": "def fibonacci(n):",
    "other scripts": "\u4f60\u597d, \u00e9t\u00e9:",
}


@pytest.mark.slow
@pytest.mark.parametrize("parameters", REQUESTS.values(), ids=[*REQUESTS])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=[*PROMPTS])
def test_the_tokens_of_vllm_serve(
    triton: TritonServer, theirs: str, peer: VllmServe, prompt: str, parameters: dict[str, Any]
) -> None:
    """The same engine arguments, prompt and parameters give the same tokens and reasons."""
    choices = peer.complete(prompt, return_token_ids=True, **parameters)
    inputs = {
        "text_input": prompt,
        "exclude_input_in_output": True,
        "sampling_parameters": json.dumps(parameters),
    }
    flags = ("finish_reason", "output_ids", "stop_reason", "logprobs")
    asked = {**inputs, **{f"return_{flag}": True for flag in flags}}
    (response,) = ask(triton, asked, 120, model=theirs)
    assert not response.error
    assert tuple(choice["text"] for choice in choices) == response.outputs["text_output"]
    ids = [str(token_id) for choice in choices for token_id in choice["token_ids"]]
    assert tuple(ids) == response.outputs["output_ids"]
    assert len(ids) <= LIMIT * len(choices)
    reasons = tuple(choice["finish_reason"] for choice in choices)
    assert reasons == response.outputs["finish_reason"]
    stops = [json.loads(each) for each in response.outputs["stop_reason"]]
    assert [choice["stop_reason"] for choice in choices] == stops
    if "logprobs" in parameters:
        ours = [next(iter(p.values())) for p in json.loads(response.outputs["logprobs"][0])]
        theirs_logprobs = choices[0]["logprobs"]["token_logprobs"]
        assert theirs_logprobs == pytest.approx([each["logprob"] for each in ours], abs=1e-3)

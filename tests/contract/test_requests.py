"""What requests need of vLLM beside the sampling parameters."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import BeamSearchParams
from vllm.v1.engine import FINISH_REASON_STRINGS
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.errors import GenerationError, RequestError
from triton_vllm.protocol.delta import DeltaReader
from triton_vllm.protocol.outputs import OUTPUTS
from triton_vllm.protocol.requests import EngineOptions
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render.text import beam_search_params

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def write_model(directory: Path, generation_config: dict[str, Any]) -> str:
    """Write as much of a model as vLLM's configuration reads; return its path."""
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "generation_config.json").write_text(json.dumps(generation_config))
    return str(directory)


def request_output(*completions: CompletionOutput, finished: bool = False) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        prompt=None,
        prompt_token_ids=[1, 2, 3],
        prompt_logprobs=None,
        outputs=list(completions),
        finished=finished,
        num_cached_tokens=2,
    )


def completion(**changes: Any) -> CompletionOutput:
    values: dict[str, Any] = {
        "index": 0,
        "text": " a",
        "token_ids": [7],
        "cumulative_logprob": -0.5,
        "logprobs": [{7: Logprob(float("-inf"), 1, " a")}],
    }
    return CompletionOutput(**(values | changes))


def encoded(output: RequestOutput) -> dict[str, list[Any]]:
    """Return every output tensor made of vLLM's output."""
    extras = DeltaReader(len(output.outputs), detailed=True).read(output).extras
    assert extras is not None
    return {o.tensor.name: o.encode(extras).tolist() for o in OUTPUTS}


def test_every_output_is_made_of_vllms_own() -> None:
    """Each tensor is found in vLLM's classes; JSON has no infinity."""
    logprob = '[{"7": {"logprob": -9999.0, "rank": 1, "decoded_token": " a"}}]'
    expected = {
        "finish_reason": [b"stop"],
        "cumulative_logprob": [-0.5],
        "logprobs": [logprob.encode()],
        "num_input_tokens": [3],
        "num_output_tokens": [1],
        "output_ids": [7],
        "stop_reason": [b'"."'],
        "prompt_logprobs": [b"null"],
        "num_cached_tokens": [2],
        "schema_errors": [b"null"],
    }
    end = completion(finish_reason="stop", stop_reason=".")
    assert expected == encoded(request_output(end, finished=True))


def test_flat_log_probabilities_look_the_same() -> None:
    """The parameter flat_logprobs changes how vLLM keeps them, and not what a client gets."""
    positions = [{7: Logprob(-0.5, 1, " a")}, {8: Logprob(-1.0, 2, " b")}]
    flat = FlatLogprobs()
    for position in positions:
        flat.append(position)
    outputs = [request_output(completion(logprobs=each)) for each in (positions, flat)]
    assert encoded(outputs[0])["logprobs"] == encoded(outputs[1])["logprobs"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, None), ({"logprobs": 0}, 0), ({"logprob_token_ids": [7, 8]}, 2)],
    ids=["none", "chosen", "of some tokens"],
)
def test_vllm_says_whether_it_computes_log_probabilities(
    given: dict[str, Any], expected: int | None
) -> None:
    """There are two parameters that ask for them, and one property that knows both."""
    params, _ = SamplingParser({}).parse(given, stream=True, where="w")
    assert expected == params.num_logprobs


def test_a_failed_generation_raises() -> None:
    """It is told by a finish reason, and must not look like an empty text."""
    assert "error" in FINISH_REASON_STRINGS
    output = request_output(completion(finish_reason="error", text=""), finished=True)
    with pytest.raises(GenerationError):
        DeltaReader(1, detailed=False).read(output)


@pytest.mark.parametrize("name", ["priority", "data_parallel_rank", "trace_headers"])
def test_generate_takes_what_we_pass(name: str) -> None:
    """The names under which the engine takes a request's options."""
    assert name in inspect.signature(AsyncLLM.generate).parameters


def test_beam_search_takes_what_we_pass() -> None:
    """The names under which vLLM's own beam search takes a request."""
    expected = ["self", "prompt", "request_id", "params"]
    parameters = inspect.signature(BeamSearchOnlineMixin.beam_search).parameters
    assert expected == list(parameters)[:4]
    assert "trace_headers" in parameters


def test_the_parameters_of_a_beam_search() -> None:
    """n, max_tokens and what else beam search heeds; greedy beams are not refused."""
    given = {"use_beam_search": True, "n": 3, "temperature": 0, "length_penalty": 0.5}
    params, options = SamplingParser({}).parse(given, stream=False, where="w")
    beams = beam_search_params(params, options, context_left=9)
    assert (3, 9, 0.5) == (beams.beam_width, beams.max_tokens, beams.length_penalty)
    limited, _ = SamplingParser({}).parse({"max_tokens": 4}, stream=False, where="w")
    assert 4 == beam_search_params(limited, EngineOptions(), context_left=9).max_tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("structured_outputs", {"regex": "a"}),
        ("stop", ["a"]),
        ("stop_token_ids", [1]),
        ("logit_bias", {"1": 1.0}),
        ("min_tokens", 1),
        ("bad_words", ["a"]),
        ("repetition_penalty", 1.1),
        ("top_p", 0.5),
        ("data_parallel_rank", 0),
        ("on_timeout", "finish"),
    ],
)
def test_what_beam_search_ignores_is_refused(name: str, value: Any) -> None:
    """By its name, in every supported version."""
    with pytest.raises(RequestError, match=f'w: "{name}": does not go with "use_beam_search"'):
        SamplingParser({}).parse({"use_beam_search": True, name: value}, stream=False, where="w")


@pytest.mark.parametrize(
    ("name", "value"),
    [("allowed_token_ids", [1, 2]), ("skip_special_tokens", False), ("priority", 1)],
)
def test_what_newer_beam_search_heeds_is_passed_on(name: str, value: Any) -> None:
    """Found by looking; refused by its name where this vLLM's beam search does not know it."""
    given = {"use_beam_search": True, name: value}
    takes = inspect.signature(BeamSearchOnlineMixin.beam_search).parameters
    if name not in takes and not hasattr(BeamSearchParams(1, 1), name):
        with pytest.raises(RequestError, match=f'"{name}": does not go'):
            SamplingParser({}).parse(given, stream=False, where="w")
        return
    params, options = SamplingParser({}).parse(given, stream=False, where="w")
    beams = beam_search_params(params, options, context_left=9)
    assert value == getattr(options if name in takes else beams, name)


def test_defaults_go_with_beam_search() -> None:
    """As clients send all they have; the model's own defaults are not the client's wish."""
    plain = vllm_api.SamplingParams()
    names = set(SamplingParser({}).parameters.names).intersection(plain.__struct_fields__)
    given = {name: getattr(plain, name) for name in names} | {"use_beam_search": True}
    params, _ = SamplingParser({"top_p": 0.5}).parse(given, stream=False, where="w")
    assert 1 == params.n


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"override_generation_config": {"max_new_tokens": 5}}, 5),
        ({"override_generation_config": {"temperature": 0.5}}, None),
        ({"generation_config": "vllm"}, None),
    ],
    ids=["none", "overridden", "overridden otherwise", "vllm"],
)
def test_the_limit_on_max_tokens(
    tmp_path: Path, changes: dict[str, Any], expected: int | None
) -> None:
    """The operator's max_new_tokens is a limit; the model's own is a default."""
    model = write_model(tmp_path, {"max_new_tokens": 7})
    args = AsyncEngineArgs(model=model, skip_tokenizer_init=True, **changes)
    config = vllm_api.create_config(args)
    assert expected == vllm_api.max_tokens_limit(config)


def test_a_named_generation_config_is_a_limit(tmp_path: Path) -> None:
    """A generation_config.json that the operator names counts like an override."""
    model = write_model(tmp_path, {"max_new_tokens": 7})
    args = AsyncEngineArgs(model=model, skip_tokenizer_init=True, generation_config=model)
    assert 7 == vllm_api.max_tokens_limit(vllm_api.create_config(args))

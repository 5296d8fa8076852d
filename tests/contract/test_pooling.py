"""Pooling parameters, by vLLM's real class."""

from __future__ import annotations

from typing import Any

import pytest

from triton_vllm.errors import RequestError
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import PoolingParser
from triton_vllm.vllm_api.render import pooling as vllm_pooling


def parse(given: dict[str, Any]) -> Any:
    return PoolingParser().parse(given, stream=False, where="pooling_parameters")


def test_values_are_converted() -> None:
    """Strings are read by the field's type, as with sampling parameters."""
    params, options = parse({"dimensions": "16", "use_activation": "false", "priority": 3})
    assert (16, False, 3) == (params.dimensions, params.use_activation, options.priority)
    assert None is options.truncate_prompt_tokens


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dimension": 16}, 'unknown key "dimension", did you mean "dimensions"?'),
        ({"dimensions": True}, "must not be a boolean"),
        ({"task": "embed"}, 'unknown key "task"'),
        ({"use_beam_search": True}, 'unknown key "use_beam_search"'),
        ({"temperature": 0}, 'unknown key "temperature"'),
    ],
    ids=["near miss", "wrong type", "the engine's own", "for generation", "for sampling"],
)
def test_wrong_parameters_are_refused(given: dict[str, Any], expected: str) -> None:
    """The error names the parameter."""
    with pytest.raises(RequestError) as raised:
        parse(given)
    assert expected in str(raised.value)


CHUNKS = "late_chunking_params"


@pytest.mark.skipif(not hasattr(vllm_api.PoolingParams, CHUNKS), reason="newer than vLLM 0.32")
def test_a_struct_of_vllms_is_made_of_an_object() -> None:
    """Its members are checked as parameters are."""
    for given in ({"chunk_size": 8}, '{"chunk_size": "8"}'):
        params, _ = parse({CHUNKS: given})
        assert 8 == params.late_chunking_params.chunk_size
    for wrong, expected in (
        ({"size": 8}, 'unknown key "size"'),
        ({"chunk_size": "many"}, f'"{CHUNKS}": "chunk_size": Input should be a valid integer'),
        ({"chunk_size": 0}, f'"{CHUNKS}": chunk_size must be a positive integer'),
        ({}, f'"{CHUNKS}": Missing required argument'),
        (8, f'"{CHUNKS}": '),
    ):
        with pytest.raises(RequestError) as raised:
            parse({CHUNKS: wrong})
        assert expected in str(raised.value)


def test_the_scores_are_read() -> None:
    """The response of vLLM's own scoring endpoint, in its own class."""
    from vllm.entrypoints.pooling.scoring.protocol import ScoreResponse, ScoreResponseData

    usage = {"prompt_tokens": 7, "total_tokens": 7}
    data = [ScoreResponseData(index=0, score=0.25), ScoreResponseData(index=1, score=0.5)]
    delta = vllm_pooling.read_scores(ScoreResponse(model="m", data=data, usage=usage).model_dump())
    assert delta.final
    assert delta.extras
    assert delta.extras.embeddings is not None
    assert ([0.25, 0.5], 7) == (delta.extras.embeddings.tolist(), delta.extras.num_input_tokens)

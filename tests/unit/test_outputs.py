"""The output tensors: what each one makes of a delta's extras."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from triton_vllm.protocol.delta import DeltaExtras, SequenceExtras
from triton_vllm.protocol.outputs import NO_LOGPROBS, OUTPUTS


@dataclass
class Logprob:
    """``vllm.logprobs.Logprob``."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


POSITION = {7: Logprob(-0.5, 2, " a"), 9: Logprob(float("-inf"), 1, None)}
AS_JSON = {
    "7": {"logprob": -0.5, "rank": 2, "decoded_token": " a"},
    "9": {"logprob": -9999.0, "rank": 1, "decoded_token": None},
}
EXTRAS = DeltaExtras(
    (
        SequenceExtras([7], [POSITION], -0.5, "stop", "."),
        SequenceExtras([8, 9], [POSITION, POSITION], -1.5, "stop", 2),
        SequenceExtras(cumulative_logprob=-3.0),
    ),
    num_input_tokens=5,
    num_cached_tokens=4,
    prompt_logprobs=[None, POSITION],
)
DTYPES = {"STRING": np.object_, "FP32": np.float32, "UINT32": np.uint32, "INT64": np.int64}


def made(name: str, extras: DeltaExtras = EXTRAS) -> Any:
    """Return an output's elements, texts decoded."""
    (output,) = [output for output in OUTPUTS if output.tensor.name == name]
    elements = output.encode(extras).tolist()
    return [e.decode() if isinstance(e, bytes) else e for e in elements]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finish_reason", ["stop", "stop", "None"]),
        ("stop_reason", ['"."', "2", "null"]),
        ("cumulative_logprob", [-0.5, -1.5, -3.0]),
        ("num_input_tokens", [5]),
        ("num_cached_tokens", [4]),
        ("num_output_tokens", [1, 2, 0]),
        ("output_ids", [7, 8, 9]),
    ],
)
def test_each_output_has_its_elements(name: str, expected: list[Any]) -> None:
    """An element for each sequence, or one for the prompt."""
    assert expected == made(name)


def test_log_probabilities_are_json() -> None:
    """One list for each sequence, one object for each token, and no infinity in it."""
    lists = [json.loads(element, parse_constant=pytest.fail) for element in made("logprobs")]
    assert [[AS_JSON], [AS_JSON, AS_JSON], []] == lists


def test_the_first_token_of_a_prompt_has_no_log_probability() -> None:
    """Its place holds null, so that positions are those of the prompt."""
    assert [None, AS_JSON] == json.loads(made("prompt_logprobs")[0])


@pytest.mark.parametrize("later", [None, []], ids=["none", "empty"])
def test_the_prompts_log_probabilities_come_once(later: Any) -> None:
    """What vLLM leaves out of later outputs is null in later responses."""
    assert ["null"] == made("prompt_logprobs", DeltaExtras(EXTRAS.sequences, 5, 4, later))


def test_log_probabilities_that_were_not_asked_for_are_null() -> None:
    """Each sequence has an element all the same."""
    assert [b"null"] * 3 == NO_LOGPROBS.encode(EXTRAS).tolist()


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output.tensor.name)
@pytest.mark.parametrize("extras", [EXTRAS, DeltaExtras((SequenceExtras(),), 1)], ids=["3", "1"])
def test_an_array_is_of_its_tensors_type_and_size(output: Any, extras: DeltaExtras) -> None:
    """Triton gets what config.pbtxt declares, however little is new."""
    array = output.encode(extras)
    assert DTYPES[output.tensor.datatype] == array.dtype
    assert 1 == array.ndim
    if output.tensor.name != "output_ids":
        expected = 1 if output.tensor.size == 1 else len(extras.sequences)
        assert expected == len(array)

"""In the place of Triton's own vLLM backend: its model folders, its clients, as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.drop_in import add_ensemble, add_their_model
from tests.e2e.triton_server import TritonServer, ask, generate, sampling

pytestmark = pytest.mark.timeout(300)

FRANCE = "The capital of France is"


@pytest.fixture(scope="module")
def theirs(triton: TritonServer) -> Iterator[str]:
    """A model whose folder was written for Triton's own backend, beside the model `vllm`."""
    add_their_model(triton.repository, "theirs")
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
    inputs = {"text_input": FRANCE, "sampling_parameters": sampling(max_tokens=8)}
    (response,) = ask(triton, {**inputs, "exclude_input_in_output": True}, model=theirs)
    assert (generate(triton, FRANCE),) == response.outputs["text_output"]


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

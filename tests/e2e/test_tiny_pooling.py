"""Embeddings, classes and scores on the real server, against those of transformers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.e2e.tiny_models import TinyModels, document_lines
from tests.e2e.triton_server import HAS_GPU

pytestmark = pytest.mark.timeout(300)
SIZE = 64


def rows(response: Any, output: str = "embeddings", size: int = SIZE) -> list[list[float]]:
    """Return the rows of a response's embeddings."""
    assert not response.error, response.error
    flat = [float(element) for element in response.outputs[output]]
    return [flat[i : i + size] for i in range(0, len(flat), size)]


def close(expected: list[float]) -> Any:
    """Return what compares equal to numbers that are nearly these: a GPU rounds to TF32."""
    return pytest.approx(expected, abs=1e-3 if HAS_GPU else 2e-4)


@pytest.fixture
def embedding(tiny: TinyModels) -> TinyModels:
    """The model ``embedding`` is loaded."""
    tiny.serve("embedding")
    return tiny


def test_texts_become_vectors(embedding: TinyModels) -> None:
    """Each of a batch gets the vector that transformers gives it, in the batch's order."""
    texts, expected = embedding.expected["texts"], embedding.expected["embeddings"]
    response = embedding.ask("embedding", {"texts": texts, "return_num_input_tokens": True})
    embeddings = rows(response)
    assert [close(vector) for vector in expected] == embeddings
    assert {"embeddings", "num_input_tokens"} == response.outputs.keys()
    # A token a byte, and one at each end.
    assert (str(sum(len(text) + 2 for text in texts)),) == response.outputs["num_input_tokens"]
    assert [close(v) for v in expected[::-1]] == rows(
        embedding.ask("embedding", {"texts": texts[::-1]})
    )


def test_a_large_batch(embedding: TinyModels) -> None:
    """More texts than the engine runs at once are answered in one response, each at its place."""
    texts = [f"text {i}" for i in range(40)]
    embeddings = rows(embedding.ask("embedding", {"texts": texts}))
    assert len(texts) == len(embeddings)
    (last,) = rows(embedding.ask("embedding", {"texts": texts[-1:]}))
    assert close(last) == embeddings[-1]


@pytest.mark.parametrize(("name", "line"), document_lines("EMBEDDING"))
def test_a_line_of_the_document(embedding: TinyModels, name: str, line: str) -> None:
    """Each is answered with embeddings, or what else it asks for."""
    answer = embedding.run_line(line, "embedding")
    assert {"embeddings", "scores", "text_output"} & answer.keys(), name


@pytest.mark.parametrize("how", ["tensor", "parameter"])
def test_dimensions(embedding: TinyModels, how: str) -> None:
    """A model of the Matryoshka kind gives shorter embeddings, of length one, on demand."""
    text, full = embedding.expected["texts"][0], embedding.expected["embeddings"][0][:16]
    inputs: dict[str, Any] = {"texts": [text]}
    parameters = {}
    if how == "tensor":
        inputs["pooling_parameters"] = json.dumps({"dimensions": 16})
    else:
        parameters["dimensions"] = 16
    (vector,) = rows(embedding.ask("embedding", inputs, parameters=parameters), size=16)
    length = math.hypot(*full)
    assert close([value / length for value in full]) == vector


def test_what_the_openai_front_end_sends(embedding: TinyModels) -> None:
    """embedding_request is answered with JSON in text_output, and the counts beside it."""
    text, expected = embedding.expected["texts"][0], embedding.expected["embeddings"][0]
    flags = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    asked = json.dumps({"input": text, "pooling_params": {}})
    response = embedding.ask("embedding", {"embedding_request": asked, **flags})
    assert not response.error, response.error
    (answer,) = response.outputs["text_output"]
    assert close(expected) == json.loads(answer)
    assert (str(len(text) + 2),) == response.outputs["num_input_tokens"]
    assert ("0",) == response.outputs["num_output_tokens"]


def test_the_json_forms_of_input(embedding: TinyModels) -> None:
    """A list of texts has an answer each; token ids stand for a text; dimensions come as a list."""
    texts = embedding.expected["texts"]
    asked = json.dumps({"input": texts, "pooling_params": {"dimensions": [16]}})
    answers = embedding.ask("embedding", {"embedding_request": asked}).outputs["text_output"]
    assert [16, 16] == [len(json.loads(answer)) for answer in answers]
    tokens = json.dumps({"input": [20, 21, 22]})
    (one,) = embedding.ask("embedding", {"embedding_request": tokens}).outputs["text_output"]
    assert SIZE == len(json.loads(one))


def test_embeddings_are_scored_by_cosine(embedding: TinyModels) -> None:
    """Of an embedding model, queries and documents: the cosine of their embeddings."""
    texts, embeddings = embedding.expected["texts"], embedding.expected["embeddings"]
    response = embedding.ask("embedding", {"queries": texts[:1], "documents": texts})
    cosine = sum(a * b for a, b in zip(*embeddings, strict=True))
    assert [close([1.0, cosine])] == rows(response, "scores", 2)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            {"text_input": "a"},
            "text_input: not for this model; a request has one prompt: texts, queries or",
        ),
        ({"texts": ["a"], "queries": ["b"]}, "queries: came beside texts"),
        ({"texts": ["a"], "sampling_parameters": "{}"}, "does not go with texts"),
        ({"texts": ["a"], "pooling_parameters": '{"dimension": 16}'}, 'did you mean "dimensions"?'),
        ({"texts": ["a"], "pooling_parameters": '{"dimensions": 17}'}, "dimensions [16, 64]"),
        ({"texts": ["a"], "pooling_parameters": '{"dimensions": "x"}'}, '"dimensions":'),
        ({"texts": ["a" * 600]}, "512"),
        ({"queries": ["a"]}, "documents: missing"),
        ({"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "as many as the 3 documents"),
        ({"embedding_request": "{}"}, '"input" must be a string'),
        ({"embedding_request": '{"input": "a", "inputs": 1}'}, 'unknown key "inputs"'),
        ({"texts": ["a"], "pooling_parameters": '{"lora_name": "x"}'}, "lora_name"),
    ],
    ids=[
        "generation",
        "two prompts",
        "sampling parameters",
        "unknown parameter",
        "dimensions that it has not",
        "wrong type",
        "too long",
        "no documents",
        "wrong count",
        "no input",
        "unknown key",
        "no adapters",
    ],
)
def test_wrong_requests_are_refused(
    embedding: TinyModels, inputs: dict[str, Any], expected: str
) -> None:
    """The error says which input, and why."""
    assert expected in embedding.ask("embedding", inputs).error


def test_a_long_text_is_cut_on_demand(embedding: TinyModels) -> None:
    """truncate_prompt_tokens: -1 cuts a text to the context."""
    parameters = json.dumps({"truncate_prompt_tokens": -1})
    inputs = {"texts": ["a" * 600], "pooling_parameters": parameters}
    response = embedding.ask("embedding", {**inputs, "return_num_input_tokens": True})
    assert not response.error, response.error
    assert ("512",) == response.outputs["num_input_tokens"]


@pytest.mark.slow
def test_texts_are_classified(tiny: TinyModels) -> None:
    """A model with three labels answers with a row of their probabilities for each text."""
    tiny.serve("classifier")
    response = tiny.ask("classifier", {"texts": tiny.expected["texts"]})
    assert [close(row) for row in tiny.expected["classes"]] == rows(response, size=3)
    refused = tiny.ask("classifier", {"queries": ["a"], "documents": ["b"]})
    assert "queries: this model does not score pairs" in refused.error
    refused = tiny.ask("classifier", {"embedding_request": '{"input": "a"}'})
    assert "embedding_request: this model does not embed" in refused.error


def test_a_cross_encoder_scores_pairs(tiny: TinyModels) -> None:
    """One query against each document, and pair by pair, as transformers scores them."""
    tiny.serve("reranker")
    query, texts = tiny.expected["query"], tiny.expected["texts"]
    for queries in ([query], [query, query]):
        response = tiny.ask("reranker", {"queries": queries, "documents": texts})
        assert [close(tiny.expected["scores"])] == rows(response, "scores", 2)


@pytest.mark.parametrize(("name", "line"), document_lines("RERANKER"))
def test_a_line_of_the_document_for_a_reranker(tiny: TinyModels, name: str, line: str) -> None:
    """Each is answered with a score for each pair."""
    tiny.serve("reranker")
    assert 2 == len(tiny.run_line(line, "reranker")["scores"]), name

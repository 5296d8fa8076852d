"""Structured outputs by one library, and answers that are checked, on both protocols."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.e2e.grpc_requests import ask, refusal, sampling
from tests.e2e.openai_port import Served, eventually, metric

pytestmark = pytest.mark.timeout(300)

OBJECT = {
    "type": "object",
    "properties": {"a": {"const": "x"}},
    "required": ["a"],
    "additionalProperties": False,
}
# xgrammar ignores the `not`, so that each answer violates it.
IMPOSSIBLE = {**OBJECT, "not": {"required": ["a"]}}
# Neither xgrammar nor llguidance takes it.
UNKNOWN = {"type": "object", "properties": {"a": {"type": "string", "format": "regex"}}}


def inputs(schema: Any, *, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    given = {"max_tokens": 40, "structured_outputs": {"json": schema}, **parameters}
    return {
        "text_input": "JSON:",
        "exclude_input_in_output": True,
        "return_schema_errors": True,
        "stream": stream,
        "sampling_parameters": sampling(**given),
    }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_violations_come_with_the_final_response(served: Served, stream: bool) -> None:
    """They are those of the whole schema, whatever the library enforced."""
    *others, last = [
        response.outputs["schema_errors"]
        for response in ask(served.triton, inputs(IMPOSSIBLE, stream=stream))
        if response.outputs
    ]
    assert {("null",)} >= set(others)
    (violation,) = json.loads(last[0])
    assert ("", "not") == (violation["path"], violation["keyword"])


def test_a_text_that_matches_has_no_violations(served: Served) -> None:
    """The list is empty; it is null where there is no schema."""
    (response,) = ask(served.triton, inputs(OBJECT))
    assert ("[]",) == response.outputs["schema_errors"]
    plain = {"text_input": "JSON:", "return_schema_errors": True}
    (response,) = ask(served.triton, {**plain, "sampling_parameters": sampling(max_tokens=2)})
    assert ("null",) == response.outputs["schema_errors"]


def test_a_cut_text_is_told(served: Served) -> None:
    """The text is no complete JSON, because it had too few tokens."""
    (response,) = ask(served.triton, inputs(OBJECT, max_tokens=2))
    (violation,) = json.loads(response.outputs["schema_errors"][0])
    assert violation["keyword"] == "truncated"


def test_what_the_library_cannot_express_is_refused(served: Served) -> None:
    """Both protocols refuse it with keyword and place, whatever requests came before."""
    expected = 'xgrammar cannot express "format" at "/properties/a/format"'
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": UNKNOWN}}
    for _ in range(2):
        status, error = refusal(served.triton, inputs(UNKNOWN))
        assert status == "INVALID_ARGUMENT"
        assert expected in error
        with pytest.raises(openai.BadRequestError, match=expected):
            ask_openai(served, wanted)
        ask(served.triton, inputs(OBJECT))


def test_the_openai_port_logs_and_counts(served: Served) -> None:
    """Its protocol has no field for violations."""
    counted = ("triton_vllm:schema_violations_total", "not")
    before = metric(served.triton, counted[0], keyword=counted[1])
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": IMPOSSIBLE}}
    answer = ask_openai(served, wanted)
    assert json.loads(answer.choices[0].message.content) == {"a": "x"}
    line = f"{answer.id}: the answer violates its schema: not at choice 0"
    eventually(lambda: line in served.triton.log.read_text(), line)
    eventually(
        lambda: metric(served.triton, counted[0], keyword=counted[1]) > before, "it is counted"
    )


def test_the_log_names_the_library(served: Served) -> None:
    """Once, at the load."""
    assert 1 == served.triton.log.read_text().count("structured outputs by xgrammar ")


def ask_openai(served: Served, wanted: Any) -> Any:
    return served.client.chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "JSON:"}],
        max_tokens=40,
        temperature=0,
        response_format=wanted,
    )

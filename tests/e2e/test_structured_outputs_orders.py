"""Two front ends of one engine give a structured request the same result in every order."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.grpc_requests import ask, sampling
from tests.e2e.two_front_ends import FRONT_ENDS, TwoFrontEnds

pytestmark = pytest.mark.timeout(300)

# xgrammar does not take it; with vLLM's "auto" it would choose llguidance for the engine.
BOUNDED: dict[str, Any] = {"json": {"type": "integer", "multipleOf": 3}}
# llguidance does not take it.
NEGATED: dict[str, Any] = {"json": {"enum": ["a"], "not": {"const": "b"}}}
CHOICE: dict[str, Any] = {"choice": ["yes", "no"]}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)], ids=str)
def test_the_result_does_not_depend_on_the_order(two: TwoFrontEnds, order: list[int]) -> None:
    """Each request is sent often enough at once to reach both front ends."""
    asked = (BOUNDED, NEGATED, CHOICE)

    def result(given: dict[str, Any]) -> str:
        parameters = sampling(max_tokens=20, structured_outputs=given)
        last = ask(two.triton, {"text_input": "Hello", "sampling_parameters": parameters})[-1]
        return last.error or last.outputs["text_output"][0].removeprefix("Hello")

    for number in order:
        with ThreadPoolExecutor(4 * FRONT_ENDS) as clients:
            results = set(clients.map(result, [asked[number]] * 4 * FRONT_ENDS))
        (only,) = results
        if number == 0:
            assert 'xgrammar cannot express "multipleOf" at "/multipleOf"' in only
            assert "guidance could" in only
        elif number == 1:
            assert json.loads(only) == "a"
        else:
            assert only in ("yes", "no")

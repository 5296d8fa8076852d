"""A request's time limit on the real server: an error, or the text so far, as it asks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.triton_server import TritonServer, ask, generate, sampling

SHORT, LONG = 0.5, 1.0  # seconds: 400 tokens take longer on any CPU


def endless(**more: Any) -> dict[str, Any]:
    """Return inputs whose text fills the context."""
    parameters = sampling(max_tokens=400, ignore_eos=True, **more)
    return {"text_input": "Hello", "exclude_input_in_output": True} | {
        "sampling_parameters": parameters
    }


def test_a_time_limit_is_an_error(triton: TritonServer) -> None:
    """The text so far is discarded; the next request is served."""
    truth = generate(triton, "Hello")
    (response,) = ask(triton, endless(timeout_seconds=SHORT))
    assert f"not done within {SHORT} s" in response.error
    assert truth == generate(triton, "Hello")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_time_limit_may_keep_the_text(triton: TritonServer, stream: bool) -> None:
    """The answer ends as a good one, with what there is."""
    truth = generate(triton, "Hello")
    inputs = endless(timeout_seconds=LONG, on_timeout="finish")
    inputs |= {"stream": stream, "return_finish_reason": True}
    for _ in range(3):  # a busy machine may not come to the first token in time
        responses = ask(triton, inputs)
        assert [""] == list({response.error for response in responses})
        text = "".join(t for r in responses for t in r.outputs.get("text_output", ()))
        reasons = [r.outputs["finish_reason"] for r in responses if "finish_reason" in r.outputs]
        assert ("abort",) == tuple(reasons[-1])
        if text:
            break
    assert text
    assert text.startswith(truth) or truth.startswith(text)

"""Responses: what one holds, and which are made once."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tests.unit.fakes import fake_pb_utils, generation_request
from triton_vllm.protocol.delta import Delta, DeltaExtras, SequenceExtras
from triton_vllm.protocol.encode import ResponseEncoder
from triton_vllm.protocol.outputs import OUTPUTS

LONG = "x" * 25


def tensors(maker: ResponseEncoder, *texts: str, **request: Any) -> list[Any]:
    response, _ = maker.of_delta(Delta(texts, 1), generation_request(**request))
    return list(response.output_tensors)


def test_a_response_with_a_short_text_is_made_once() -> None:
    """The same token in another stream travels as the same response."""
    maker = ResponseEncoder(fake_pb_utils)
    delta, request = Delta((" the",), 1), generation_request()
    (first, large), (again, _) = maker.of_delta(delta, request), maker.of_delta(delta, request)
    assert first is again
    assert not large
    assert [b" the"] == first.output_tensors[0].as_numpy().tolist()


def test_a_text_beside_other_outputs_is_made_once_too() -> None:
    """Its tensor travels in another response with them; what differs is made anew."""
    maker = ResponseEncoder(fake_pb_utils)
    names = ("num_input_tokens", "finish_reason")
    request = generation_request(outputs=tuple(o for o in OUTPUTS if o.tensor.name in names))
    extras = [DeltaExtras((SequenceExtras(),), number) for number in (3, 4)]
    (first, _), (again, _) = (
        maker.of_delta(Delta((" the",), 1, extras=each), request) for each in extras
    )
    plain, _ = maker.of_delta(Delta((" the",), 1), generation_request())
    assert ["text_output", "finish_reason", "num_input_tokens"] == [
        tensor.name() for tensor in first.output_tensors
    ]
    assert [True, True, False] == [
        one is other for one, other in zip(first.output_tensors, again.output_tensors, strict=True)
    ]
    assert [3, 4] == [each.output_tensors[2].as_numpy().item() for each in (first, again)]
    assert first.output_tensors[:1] == plain.output_tensors


@pytest.mark.parametrize(
    ("texts", "request_"),
    [
        pytest.param((" a",), {"text_output": "TEXT"}, id="another output"),
        pytest.param((" b",), {}, id="another text"),
        pytest.param((" a",), {"prefix": "Once"}, id="a prompt before it"),
        pytest.param((" a", ""), {}, id="two sequences"),
    ],
)
def test_another_response_has_another_tensor(
    texts: tuple[str, ...], request_: dict[str, Any]
) -> None:
    """What is kept is found by all that the tensor is made of."""
    maker = ResponseEncoder(fake_pb_utils)
    (kept,) = tensors(maker, " a")
    (other,) = tensors(maker, *texts, **request_)
    assert other is not kept
    expected = [(request_.get("prefix", "") + text).encode() for text in texts]
    assert expected == other.as_numpy().tolist()


def test_a_long_text_is_not_kept() -> None:
    """What will not come again would only fill the shared memory."""
    maker = ResponseEncoder(fake_pb_utils)
    (first,), (again,) = tensors(maker, LONG), tensors(maker, LONG)
    assert first is not again


def test_what_is_kept_is_bounded_and_forgotten() -> None:
    """The least used tensors go first, and at the end all."""
    maker = ResponseEncoder(fake_pb_utils)
    (first,) = tensors(maker, "first")
    (last,) = tensors(maker, "last")
    for i in range(2047):
        tensors(maker, str(i))
    assert last is tensors(maker, "last")[0]
    assert first is not tensors(maker, "first")[0]
    gone = weakref.ref(last)
    del last
    maker.forget()
    gc.collect()
    assert gone() is None


def test_a_response_is_large_by_its_bytes() -> None:
    """From 16 KiB on, whatever the characters."""
    maker = ResponseEncoder(fake_pb_utils)
    request = generation_request()
    assert not maker.of_delta(Delta(("é" * 8192,), 1), request)[1]
    assert maker.of_delta(Delta(("é" * 8193,), 1), request)[1]

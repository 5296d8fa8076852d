"""Encode a delta or an error as Triton's response."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triton_vllm.errors import ServingError
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.outputs import strings
from triton_vllm.protocol.requests import GenerationRequest

_LARGE = 16_384  # bytes
# Tokens repeat. A cached text takes a few hundred bytes of the memory that this process shares with
# Triton.
_CACHED_TEXTS = 2048
_CACHED_LENGTH = 24  # characters of a text, bytes of a tensor; more is seldom one token


class ResponseEncoder:
    """Encodes the responses of one sender thread. Not thread-safe.

    A short text's tensor, and a response that holds nothing else, are made once and sent again with
    the next equal text, because making them takes longer than sending them, and holds the GIL.
    Triton has copied a response when ``send`` returns, and counts the references to the memory of
    its tensors.
    """

    def __init__(self, pb_utils: Any) -> None:
        self._pb_utils = pb_utils
        self._cached_tensor = functools.lru_cache(_CACHED_TEXTS)(self._text_tensor)
        self._cached_response = functools.lru_cache(_CACHED_TEXTS)(self._text_response)
        self.final_flag: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def of_error(self, error: ServingError) -> Any:
        """Return the response with an error."""
        codes = self._pb_utils.TritonError
        code = getattr(codes, error.status, codes.INVALID_ARG)  # older releases have fewer codes
        triton_error = self._pb_utils.TritonError(str(error), code)
        return self._pb_utils.InferenceResponse(output_tensors=[], error=triton_error)

    def of_delta(self, delta: Delta, request: GenerationRequest) -> tuple[Any, bool]:
        """Return the response with a request's delta, and whether it is large."""
        arrays: dict[str, NDArray[Any]] = {}
        if request.text_output:
            texts = delta.texts
            if request.prefix:
                texts = tuple(request.prefix + text for text in texts)
            if len(texts) == 1 and len(texts[0]) <= _CACHED_LENGTH and not delta.extras:
                return self._cached_response(request.text_output, texts[0]), False
            arrays[request.text_output] = strings(texts)
        if delta.extras:
            arrays |= {o.tensor.name: o.encode(delta.extras) for o in request.outputs}
        tensors = [self._tensor(name, array) for name, array in arrays.items()]
        is_large = sum(map(_num_bytes, arrays.values())) > _LARGE
        return self._pb_utils.InferenceResponse(output_tensors=tensors), is_large

    def forget(self) -> None:
        """Release the shared memory of all that is cached."""
        self._cached_response.cache_clear()
        self._cached_tensor.cache_clear()

    def _tensor(self, name: str, array: NDArray[Any]) -> Any:
        if array.dtype == np.object_ and array.size == 1 and len(array[0]) <= _CACHED_LENGTH:
            return self._cached_tensor(name, array[0])
        return self._pb_utils.Tensor(name, array)

    def _text_tensor(self, name: str, text: bytes) -> Any:
        return self._pb_utils.Tensor(name, np.array([text], dtype=np.object_))

    def _text_response(self, name: str, text: str) -> Any:
        tensor = self._tensor(name, strings([text]))
        return self._pb_utils.InferenceResponse(output_tensors=[tensor])


def _num_bytes(array: NDArray[Any]) -> int:
    """Return about how many bytes a tensor takes."""
    return sum(map(len, array)) if array.dtype == np.object_ else array.nbytes

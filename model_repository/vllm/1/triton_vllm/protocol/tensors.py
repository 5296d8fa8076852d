"""Triton's tensors: their declaration, and the reading of a request's inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triton_vllm.errors import RequestError


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as config.pbtxt declares it: TYPE_``datatype``, dims [``size``]."""

    name: str
    datatype: str
    size: int | tuple[int, int]
    meaning: str

    @property
    def dims(self) -> list[int]:
        """The dimensions; -1 is any size."""
        return [*self.size] if isinstance(self.size, tuple) else [self.size]

    def as_config(self) -> dict[str, Any]:
        """Return its declaration as a ``pb_utils.ModelConfig`` takes it."""
        return {"name": self.name, "data_type": f"TYPE_{self.datatype}", "dims": self.dims}


class Inputs:
    """The input tensors of one request. A wrong one raises RequestError naming it."""

    __slots__ = ("_tensors",)

    def __init__(self, request: Any) -> None:
        """``request`` is a ``pb_utils.InferenceRequest``."""
        self._tensors = {tensor.name(): tensor for tensor in request.inputs()}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> set[str]:
        """Return the names of all inputs that the client sent."""
        return set(self._tensors)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """Return a BOOL [1]."""
        return bool(self._element(name)) if name in self._tensors else default

    def string(self, name: str) -> str:
        """Return a STRING [1]."""
        return _text(name, self._element(name))

    def strings(self, name: str) -> list[str]:
        """Return a STRING [-1]."""
        return [_text(name, element) for element in self._elements(name)]

    def integers(self, name: str) -> list[int]:
        """Return an INT64 [-1]."""
        return [int(element) for element in self._elements(name)]

    def _elements(self, name: str) -> list[Any]:
        elements: list[Any] = self._tensors[name].as_numpy().reshape(-1).tolist()
        return elements

    def _element(self, name: str) -> Any:
        elements = self._elements(name)
        if len(elements) != 1:
            raise RequestError(f"{name}: must have one element, has {len(elements)}")
        return elements[0]


def _text(name: str, value: Any) -> str:
    return value if isinstance(value, str) else utf8(name, bytes(value).decode)


def utf8(name: str, decode: Callable[[], str]) -> str:
    """Return what ``decode`` does. Raises RequestError if the bytes of ``name`` are not UTF-8."""
    try:
        return decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise RequestError(
            f"{name}: not UTF-8: byte 0x{byte:02x} at offset {error.start}"
        ) from None

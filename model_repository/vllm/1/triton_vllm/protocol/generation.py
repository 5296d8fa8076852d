"""A request in the engine, of any kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from triton_vllm.protocol.delta import Delta


@dataclass(frozen=True, slots=True)
class Generation:
    """A rendered request, and how its outputs are read.

    ``outputs`` adds the request to the engine and yields vLLM's outputs until one is final; closing
    the generator aborts the request. ``read`` turns an output into a delta.
    """

    outputs: Callable[[], AsyncGenerator[Any, None]]
    read: Callable[[Any], Delta]

"""A request on its way through the engine, whatever its kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from triton_vllm.protocol.delta import Delta


@dataclass(frozen=True, slots=True)
class Generation:
    """What a request asks of the engine, and how the engine's answers are read.

    ``outputs`` adds it to the engine and yields vLLM's outputs until one is final; closing the
    generator aborts it. ``read`` turns an output into what is new for the client.
    """

    outputs: Callable[[], AsyncGenerator[Any, None]]
    read: Callable[[Any], Delta]

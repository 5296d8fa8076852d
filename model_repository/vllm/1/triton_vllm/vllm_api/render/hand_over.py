"""A request's outputs, handed over where vLLM makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from triton_vllm.errors import GenerationError, one_line

Take = Callable[[Any], None]

_take: ContextVar[Take | None] = ContextVar("take", default=None)


async def handed_over(outputs: AsyncGenerator[Any, None], take: Take) -> AsyncGenerator[Any, None]:
    """Yield of ``outputs``, which ``AsyncLLM.generate`` returned, what ``take`` does not get.

    ``take`` gets each output but the last in vLLM's task that reads the engine, which so wakes the
    request's own task for its end only, not for each token. What ``take`` raises ends the request.
    Of several sequences, and of a beam search, all outputs are yielded.
    """
    _take.set(take)  # in the context of the request's task
    async with aclosing(outputs):
        async for output in outputs:
            yield output


def divert(queue: Any) -> None:
    """Divert the outputs that a request's queue, vLLM's ``RequestOutputCollector``, will be given.

    Does nothing in a task that has not called ``handed_over``.
    """
    take = _take.get()
    if take is None:
        return
    keep = queue.put

    def put(output: Any) -> None:
        if isinstance(output, Exception) or output.finished:
            keep(output)
            return
        try:
            take(output)
        except BaseException as error:  # in vLLM's task it would end the engine for all
            queue.put = keep
            wrong = error if isinstance(error, Exception) else GenerationError(one_line(error))
            keep(wrong)

    queue.put = put

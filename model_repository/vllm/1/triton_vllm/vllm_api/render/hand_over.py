"""A request's outputs, handed over where vLLM makes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from vllm.v1.engine.exceptions import EngineGenerateError

Take = Callable[[Any], None]

_take: ContextVar[Take | None] = ContextVar("take", default=None)


class _TakeError(Exception):
    """What a request's function has raised, on its way through vLLM, which aborts the request."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def handed_over(outputs: AsyncGenerator[Any, None], take: Take) -> AsyncGenerator[Any, None]:
    """Yield those outputs of ``AsyncLLM.generate`` that ``take`` does not get.

    Each output but the last goes to ``take``, in vLLM's task that reads the engine, so the
    request's own task wakes only for the end. With several sequences all outputs are yielded.
    Raises what ``take`` raises.
    """
    _take.set(take)  # in the context of the request's task
    try:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
    except EngineGenerateError as error:
        if isinstance(error.__cause__, _TakeError):
            raise error.__cause__.error from None
        raise


def take_over() -> Take | None:
    """Return what ``handed_over`` was called with in this task, once.

    A task that is created later, such as vLLM's that reads the engine, does not inherit it.
    """
    take = _take.get()
    _take.set(None)
    return take


def divert(queue: Any, take: Take) -> None:
    """Divert the outputs that a request's queue, vLLM's ``RequestOutputCollector``, will be given.

    ``take`` gets those that are not final. The end of the request restores the queue, so that the
    two no longer refer to each other.
    """

    def put(output: Any) -> None:
        is_last = isinstance(output, Exception) or output.finished
        last = output if is_last else _failure(take, output)
        if last is not None:
            vars(queue).pop("put", None)
            queue.put(last)

    queue.put = put


def _failure(take: Take, output: Any) -> _TakeError | None:
    """Call ``take``; return what it raises, which in vLLM's task would end the engine for all."""
    try:
        take(output)
    except BaseException as error:  # a panic of Rust's is no Exception
        return _TakeError(error)
    return None

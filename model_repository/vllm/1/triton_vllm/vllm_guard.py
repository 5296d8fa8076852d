"""vLLM's engine client with a guard at its door, through which every protocol's requests go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.errors import RequestError, one_line
from triton_vllm.vllm_parallel import executor_class


class GuardedLLM(AsyncLLM):  # type: ignore[misc]
    """An ``AsyncLLM`` that asks ``check_grammar`` before the engine core compiles a grammar.

    ``check_grammar`` takes vLLM's ``StructuredOutputsParams`` and raises RequestError.
    """

    check_grammar: Callable[[Any], Awaitable[None]] | None = None

    def __init__(self, vllm_config: Any, **options: Any) -> None:
        """Take an ``AsyncLLM``'s options, but for the executor, which is chosen here."""
        options["executor_class"] = executor_class(vllm_config)
        super().__init__(vllm_config, **options)

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Add a request as ``AsyncLLM`` does. Raises vLLM's own error for a wrong request."""
        grammar = getattr(params, "structured_outputs", None)
        if grammar is not None and self.check_grammar is not None:
            try:
                await self.check_grammar(grammar)
            except RequestError as error:
                raise VLLMValidationError(one_line(error)) from error
        return await super().add_request(request_id, prompt, params, *args, **kwargs)

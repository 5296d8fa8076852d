"""vLLM's engine client with checks, through which the requests of every protocol pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.errors import RequestError, UnavailableError
from triton_vllm.limits.admission import check_sequences
from triton_vllm.protocol.fields import check_unicode
from triton_vllm.vllm_api.parallel import executor_class
from triton_vllm.vllm_api.render.hand_over import divert, take_over
from triton_vllm.vllm_api.render.media import check_media, has_media

_MAX_SEED = 2**63


class GuardedLLM(AsyncLLM):  # type: ignore[misc]
    """An ``AsyncLLM`` that refuses what is too much for the engine.

    ``check_grammar`` takes vLLM's ``StructuredOutputsParams`` before the engine core compiles them,
    and raises RequestError. ``join_queue`` is called before a prompt is queued, and raises
    UnavailableError. ``turn_away`` is told of a grammar that cannot be tried now. ``max_sequences``
    bounds ``n`` (0: vLLM's own limit).
    """

    check_grammar: Callable[[Any], Awaitable[None]] | None = None
    join_queue: Callable[[], None] | None = None
    turn_away: Callable[[UnavailableError], None] | None = None
    max_sequences: int = 0
    _drafts = False  # speculative decoding
    _greedy_only = False

    def __init__(self, vllm_config: Any, **options: Any) -> None:
        """Take an ``AsyncLLM``'s options, but for the executor, which is chosen here."""
        options["executor_class"] = executor_class(vllm_config)
        super().__init__(vllm_config, **options)
        self._drafts = vllm_config.speculative_config is not None
        self._greedy_only = self._drafts and samples_drafts_wrongly()

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Add a request as ``AsyncLLM`` does.

        Raises vLLM's own error for a wrong request, UnavailableError for one that would wait.
        """
        take = take_over()
        try:
            await self._check(prompt, params)
            queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        except Exception:
            # vLLM's cache of items takes the engine for a holder of them, which it is not. The next
            # request with one of them would fail.
            if has_media(prompt):
                await self.renderer.clear_mm_cache_async()
            raise
        # With several sequences, vLLM's queue merges their outputs of one step.
        if take is not None and getattr(params, "n", 1) == 1:
            divert(queue, take)
        return queue

    async def _check(self, prompt: Any, params: Any) -> None:
        """Raise what keeps a request from the engine. Its prompt has been rendered."""
        grammar = getattr(params, "structured_outputs", None)
        try:
            check_sequences(getattr(params, "n", 1), self.max_sequences, "n")
            check_pairs(params)
            check_texts(params)
            if self._drafts and getattr(params, "logprob_token_ids", None):
                raise RequestError(
                    '"logprob_token_ids": not with "speculative_config", which loses them'
                )
            if self._greedy_only:
                check_greedy(params)
            check_media(prompt)
            if grammar is not None and self.check_grammar is not None:
                await self.check_grammar(grammar)
        except RequestError as error:
            raise VLLMValidationError(str(error)) from error
        except UnavailableError as why:
            if self.turn_away is not None:
                self.turn_away(why)
            raise
        if self.join_queue is not None:
            # Asked once. Then nothing comes in between, as every protocol renders prompts first.
            await self.get_supported_tasks()
            self.join_queue()


def check_texts(params: Any) -> None:
    """Raise RequestError for a text that cannot be sent to the engine core."""
    for name in ("stop", "bad_words"):
        check_unicode(getattr(params, name, None), f'"{name}"')


def check_pairs(params: Any) -> None:
    """Raise RequestError for two parameters that vLLM takes apart, and not together."""
    asks_for_prompt = getattr(params, "prompt_logprobs", None) is not None
    if asks_for_prompt and getattr(params, "skip_reading_prefix_cache", None) is False:
        raise RequestError('"prompt_logprobs" and "skip_reading_prefix_cache": exclude each other')
    n, seed = getattr(params, "n", 1), getattr(params, "seed", None)
    if seed is not None and seed + n > _MAX_SEED:  # each sequence has a seed of its own
        raise RequestError('"seed" and "n": too large together')


def samples_drafts_wrongly() -> bool:
    """Return whether this vLLM loses the temperature of a draft's tokens, as it does on a CPU.

    There it writes the sampling parameters of each token into a copy, and samples with what the
    memory held (0.26 to 0.33).
    """
    if HAS_TRITON:
        return False
    from vllm.utils import cpu_triton_utils

    current_platform.import_kernels()
    temperatures, written = torch.tensor([0.625, 0.375]), torch.zeros(2)
    cpu_triton_utils._expand_kernel_impl(written, temperatures, torch.tensor([1, 2]), 0, 0)
    return not torch.equal(temperatures, written)


def check_greedy(params: Any) -> None:
    """Raise RequestError for a request whose drafts would be sampled, not taken greedily.

    One token, as each step of a beam search asks for, has no drafts.
    """
    sampled = getattr(params, "temperature", 0) > 0
    if sampled and (params.max_tokens != 1 or params.top_k > 0):
        raise RequestError(
            '"temperature": must be 0, as this vLLM samples wrongly on a CPU with '
            f'"speculative_config", got {params.temperature}'
        )

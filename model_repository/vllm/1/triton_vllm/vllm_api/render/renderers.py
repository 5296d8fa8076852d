"""Each kind of prompt becomes work for the engine: this says which code does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from triton_vllm.config.lora import Adapter, Adapters, LoadedAdapters, NoAdapters
from triton_vllm.protocol.generation import Generation
from triton_vllm.protocol.requests import (
    ChatPrompt,
    EmbedRequest,
    GenerationRequest,
    MediaPrompt,
    ScoreRequest,
    TextPrompt,
    TokenPrompt,
)
from triton_vllm.vllm_api.render.chat_options import ChatOptions

Render = Callable[[Any, GenerationRequest, Any], Awaitable[Generation]]


class Renderers:
    """The renderers of one ``AsyncLLM``. Event loop only."""

    def __init__(self, vllm: Any, llm: Any, adapters: Adapters | NoAdapters) -> None:
        """``vllm`` is the module ``vllm_api``."""
        self._vllm = vllm
        self._llm = llm
        self._adapters = LoadedAdapters(adapters)
        self._of: dict[type, Render] = {}

    async def prepare(self, chat: ChatOptions) -> None:
        """Choose the renderers of what this model does."""
        # For any model: it guards what vLLM's own code fetches, too.
        from triton_vllm.vllm_api.render import media as vllm_media

        vllm_media.guard(self._llm)
        if self._vllm.is_pooling(self._llm.vllm_config):
            from triton_vllm.vllm_api.render.pooling import PoolingRenderer

            tasks = await self._llm.get_supported_tasks()
            pooling = PoolingRenderer(self._llm, tasks, chat.template)
            self._of = {EmbedRequest: pooling.render_texts, ScoreRequest: pooling.render_pairs}
        else:
            from triton_vllm.vllm_api.render import text as vllm_text

            self._of = {
                TextPrompt: vllm_text.render,
                TokenPrompt: vllm_text.render,
                MediaPrompt: vllm_media.render,
                ChatPrompt: LateChat(self._llm, chat).render,
            }

    async def render(self, request: GenerationRequest) -> Generation:
        """Return the request as the engine takes it, its adapter loaded.

        Raises RequestError, or vLLM's own error, for what cannot be served.
        """
        adapter = await self._adapters.get(request.options.lora_name, self._load)
        lora = self._vllm.lora_request(adapter)
        return await self._of[type(request.prompt)](self._llm, request, lora)

    async def _load(self, adapter: Adapter) -> Adapter:
        loaded: Adapter = await self._vllm.load_adapter(self._llm, adapter)
        return loaded


class LateChat:
    """Chat, whose renderer the first request with messages starts. Event loop only.

    Importing vLLM's chat takes a second, which a model that never chats need not spend. Where the
    operator has given options for chat it is imported already, and starts with the model.
    """

    def __init__(self, llm: Any, options: ChatOptions) -> None:
        self._llm = llm
        self._options = options
        self._starting = asyncio.Lock()
        self._started: Render | None = self._start() if options.are_given else None

    async def render(self, llm: Any, request: GenerationRequest, lora: Any) -> Generation:
        """Render with vLLM's chat."""
        async with self._starting:
            if self._started is None:
                self._started = await asyncio.to_thread(self._start)
        return await self._started(llm, request, lora)

    def _start(self) -> Render:
        from triton_vllm.vllm_api.render.chat import ChatRenderer

        return ChatRenderer(self._llm, self._options.args).render

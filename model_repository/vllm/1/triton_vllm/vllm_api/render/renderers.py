"""Each kind of prompt becomes work for the engine: this chooses the code that does it."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace

from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path

from triton_vllm.config.lora import Adapter, Adapters, LoadedAdapters, NoAdapters
from triton_vllm.errors import RequestError
from triton_vllm.protocol.requests import (
    ChatPrompt,
    EmbedRequest,
    Generation,
    GenerationRequest,
    MediaPrompt,
    ScoreRequest,
    TextPrompt,
    TokenPrompt,
)
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.render import media as vllm_media
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.chat import ChatRenderer
from triton_vllm.vllm_api.render.pooling import PoolingRenderer


class Renderers:
    """The renderers of one ``AsyncLLM``. Event loop only."""

    def __init__(self, llm: vllm_api.AsyncLLM, adapters: Adapters | NoAdapters) -> None:
        """Serve ``adapters`` with ``llm``; ``prepare`` has to follow."""
        self._llm = llm
        self._adapters = LoadedAdapters(adapters)
        self._chat: ChatRenderer | None = None
        self._pooling: PoolingRenderer | None = None

    async def prepare(self, chat: argparse.Namespace) -> None:
        """Make the renderers of what this model does. ``chat`` comes from ``parse_chat_args``."""
        vllm_media.guard(self._llm)
        if vllm_api.is_pooling(self._llm.vllm_config):
            tasks = await self._llm.get_supported_tasks()
            self._pooling = PoolingRenderer(self._llm, tasks, chat.chat_template)
        else:
            self._chat = ChatRenderer(self._llm, chat)

    async def render(self, request: GenerationRequest) -> Generation:
        """Return the request as the engine takes it. Raises RequestError, or vLLM's own error."""
        adapter = await self._adapters.get(request.options.lora_name, self._load)
        lora = adapter and _lora_request(adapter)
        match request.prompt:
            case MediaPrompt() as prompt:
                return await vllm_media.render(self._llm, prompt, request, lora)
            case TextPrompt() | TokenPrompt() as prompt:
                return await vllm_text.render(self._llm, prompt, request, lora)
            case ChatPrompt() as prompt if self._chat is not None:
                return await self._chat.render(prompt, request, lora)
            case EmbedRequest() as prompt if self._pooling is not None:
                return await self._pooling.render_texts(prompt, request, lora)
            case ScoreRequest() as prompt if self._pooling is not None:
                return await self._pooling.render_pairs(prompt, request, lora)
            case other:
                raise RequestError(f"{type(other).__name__}: this model takes no such prompt")

    async def _load(self, adapter: Adapter) -> Adapter:
        """Load an adapter into the engine; return it with its folder.

        One on a hub is downloaded here first, as the engine would wait for the download.
        """
        path = await asyncio.to_thread(get_adapter_absolute_path, adapter.path)
        local = replace(adapter, path=path)
        await self._llm.add_lora(_lora_request(local))
        return local


def _lora_request(adapter: Adapter) -> LoRARequest:
    return LoRARequest(adapter.engine_name, adapter.engine_id, adapter.path)

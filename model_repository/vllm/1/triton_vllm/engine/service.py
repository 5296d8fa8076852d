"""What stands between the requests and the engine that lives: guards, renderers, the HTTP port."""

from __future__ import annotations

import contextlib
from typing import Any

from triton_vllm.config.lora import Adapters, NoAdapters
from triton_vllm.engine.plan import Launch
from triton_vllm.engine.run import EngineLife
from triton_vllm.limits.admission import Admission
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.grammar import GrammarSandbox, NoGrammarSandbox, grammar_sandbox
from triton_vllm.protocol.generation import Generation
from triton_vllm.protocol.requests import GenerationRequest
from triton_vllm.protocol.schema_errors import checked


class Service:
    """Opens each life of the engine to requests. Its coroutines are the event loop's."""

    def __init__(
        self,
        launch: Launch,
        admission: Admission,
        openai: Any,
        answers: AnswerCheck,
        cleanup: contextlib.ExitStack,
    ) -> None:
        """Read the adapters, once ``launch`` is resolved. Raises SettingsError.

        ``openai`` is the HTTP server, ``cleanup`` takes what is to be stopped at the end.
        """
        self._vllm: Any = launch.vllm
        self._settings = settings = launch.settings
        self._chat = launch.chat
        self._admission = admission
        self._openai = openai
        self._answers = answers
        self._cleanup = cleanup
        self._grammars: GrammarSandbox | NoGrammarSandbox | None = None
        self._adapters: Adapters | NoAdapters = NoAdapters()
        if launch.args.enable_lora:
            self._adapters = Adapters.of_model(settings.directory, settings.version)

    async def open(self, life: EngineLife) -> None:
        """Guard the door of what lives, then let requests in, at the HTTP port too."""
        from triton_vllm.vllm_api.render.renderers import Renderers
        from triton_vllm.vllm_api.structured_outputs import StructuredOutputsCheck

        serving = self._settings.serving
        if self._grammars is None:
            self._grammars = grammar_sandbox(
                serving.grammar_compile_timeout_seconds,
                self._vllm.grammar_tokenizer(life.llm),
            )
            self._cleanup.callback(self._grammars.stop)
        life.llm.check_grammar = StructuredOutputsCheck(
            life.llm,
            self._grammars.check,
            refuse=serving.unsupported_schema_keywords == "refuse",
        ).check
        life.llm.join_queue = self._admission.join_queue
        life.llm.turn_away = self._admission.turn_away
        life.llm.max_sequences = serving.max_n
        self._renderers = Renderers(life.llm, self._adapters)
        await self._renderers.prepare(self._chat)
        await self._openai.serve(life.llm)

    async def render(self, request: GenerationRequest) -> Generation:
        """Turn the prompt into token ids. Raises RequestError when it exceeds the context."""
        generation = await self._renderers.render(request)
        return checked(generation, request, self._answers.check)

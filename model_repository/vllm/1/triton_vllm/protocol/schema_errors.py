"""The output ``schema_errors``: what a finished answer violates of the client's JSON schema."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from triton_vllm.limits.answer_check import AnswerCheck, SequenceAnswer, schema_text, tool_schemas
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.outputs import SCHEMA_ERRORS
from triton_vllm.protocol.requests import ChatPrompt, Generation, GenerationRequest


def checked(generation: Generation, request: GenerationRequest, check: AnswerCheck) -> Generation:
    """Return a generation whose final delta holds the violations, if the client asks for them."""
    if SCHEMA_ERRORS not in request.outputs:
        return generation
    schema = schema_text(request.sampling_params.structured_outputs)
    chat = request.prompt.options if isinstance(request.prompt, ChatPrompt) else {}
    tools = tool_schemas(chat.get("tools"))
    answers = [SequenceAnswer() for _ in range(request.num_sequences)]

    async def read(delta: Delta) -> Delta:
        if delta.extras is None:
            return delta
        for answer, text, new in zip(answers, delta.texts, delta.extras.sequences, strict=True):
            answer.add(text, new.tool_calls, new.finish_reason)
        if not delta.final:
            return delta
        sequences = []
        for answer, new in zip(answers, delta.extras.sequences, strict=True):
            errors = await check.check_sequence(answer, schema, tools)
            sequences.append(dataclasses.replace(new, schema_errors=errors))
        extras = dataclasses.replace(delta.extras, sequences=tuple(sequences))
        return dataclasses.replace(delta, extras=extras)

    async def deltas(_: Any) -> AsyncGenerator[Delta, None]:
        async with contextlib.aclosing(generation.outputs(None)) as outputs:
            async for output in outputs:
                yield await read(generation.read(output))

    return Generation(deltas, lambda delta: delta)

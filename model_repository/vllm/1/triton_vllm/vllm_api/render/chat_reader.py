"""Read a chat's generated text through vLLM's parsers of reasoning and tool calls."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionNamedToolChoiceParam

from triton_vllm.protocol.delta import Delta, DeltaReader, SequenceExtras
from triton_vllm.vllm_api.compat import chat_utils, protocol


class ChatReader:
    """Reads vLLM's outputs of a chat: content, reasoning and tool calls, each for itself.

    A delta without content, because a parser waits for more text, is held back and merged into the
    next.
    """

    def __init__(self, chat: Any, parsers: list[Any], params: Any, *, stream: bool) -> None:
        """``parsers`` has one for each sequence, or None. ``params`` is what the engine gets."""
        self._chat = chat
        self._parsers = parsers
        self._said = self._said_new if stream else self._said_all
        self._plain = DeltaReader(len(parsers), detailed=True, params=params)
        self._has_called = [False] * len(parsers)
        self._held: Delta | None = None

    def read(self, output: Any) -> Delta:
        """Return vLLM's ``RequestOutput`` as a delta."""
        delta = self._plain.read(output)
        assert delta.extras is not None, "as the reader is a detailed one"
        texts, sequences = list(delta.texts), list(delta.extras.sequences)
        for completion in output.outputs:
            i = completion.index
            if self._parsers[i] is not None:
                texts[i], sequences[i] = self._parsed(completion, output, sequences[i])
        extras = dataclasses.replace(delta.extras, sequences=tuple(sequences))
        delta = dataclasses.replace(delta, texts=tuple(texts), extras=extras)
        if self._held is not None:
            delta = self._held + delta
        says = any(delta.texts) or any(s.reasoning or s.tool_calls for s in extras.sequences)
        self._held = None if says or delta.final else delta
        return delta if self._held is None else Delta(tuple("" for _ in texts), 0)

    def _parsed(
        self, completion: Any, output: Any, plain: SequenceExtras
    ) -> tuple[str, SequenceExtras]:
        """Return a sequence's new content and extras."""
        i = completion.index
        content, reasoning, calls = self._said(self._parsers[i], completion, output)
        self._has_called[i] |= bool(calls)
        reason = plain.finish_reason
        named = isinstance(self._chat.tool_choice, ChatCompletionNamedToolChoiceParam)
        if reason == "stop" and self._has_called[i] and not named:
            reason = "tool_calls"
        return content, dataclasses.replace(
            plain, finish_reason=reason, reasoning=reasoning, tool_calls=calls
        )

    def _said_new(self, parser: Any, completion: Any, output: Any) -> tuple[str, str, list[Any]]:
        message = parser.parse_delta(
            delta_text=completion.text,
            delta_token_ids=list(completion.token_ids),
            request=self._chat,
            prompt_token_ids=output.prompt_token_ids,
            finished=completion.finish_reason is not None,
        )
        if message is None:
            return "", "", []
        calls = [call.model_dump(exclude_none=True) for call in message.tool_calls]
        return message.content or "", message.reasoning or "", calls

    def _said_all(self, parser: Any, completion: Any, output: Any) -> tuple[str, str, list[Any]]:
        if hasattr(parser, "set_prompt_token_ids"):  # newer than 0.26
            parser.set_prompt_token_ids(output.prompt_token_ids or [])
        reasoning, content, calls = parser.parse(
            completion.text,
            self._chat,
            enable_auto_tools=type(parser).tool_parser_cls is not None,
            model_output_token_ids=completion.token_ids,
        )
        made = [
            protocol.ToolCall(id=call.id or chat_utils.make_tool_call_id(), function=call)
            for call in calls or []
        ]
        return content or "", reasoning or "", [call.model_dump() for call in made]

"""Read a chat's generated text through vLLM's parsers of reasoning and tool calls."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionNamedToolChoiceParam

from triton_vllm.errors import one_line
from triton_vllm.protocol.delta import Delta, DeltaReader, SequenceExtras
from triton_vllm.vllm_api.compat import chat_utils, protocol
from triton_vllm.vllm_api.render.stream_pieces import by_token

logger = logging.getLogger(__name__)

Said = tuple[str, str, list[Any]]  # content, reasoning, tool calls


class ChatReader:
    """Reads vLLM's outputs of a chat: content, reasoning and tool calls, each for itself.

    A delta without content, because a parser waits for more text, is held back and merged into the
    next.
    """

    def __init__(
        self, chat: Any, parsers: list[Any], params: Any, tokenizer: Any, *, stream: bool
    ) -> None:
        """``parsers`` has one for each sequence, or None. ``params`` is what the engine gets."""
        self._chat = chat
        self._decode = functools.partial(
            tokenizer.decode, skip_special_tokens=params.skip_special_tokens
        )
        self._parsers = parsers
        self._said = self._said_new if stream else self._said_all
        self._plain = DeltaReader(len(parsers), detailed=True, params=params)
        self._has_called = [False] * len(parsers)
        self._held: Delta | None = None
        self._told = False

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
        try:
            content, reasoning, calls = self._said(self._parsers[i], completion, output)
        except Exception as error:  # what a model writes is no client's mistake
            self._tell(output.request_id, error)
            content, reasoning, calls = completion.text, "", []
        self._has_called[i] |= bool(calls)
        reason = plain.finish_reason
        named = isinstance(self._chat.tool_choice, ChatCompletionNamedToolChoiceParam)
        if reason == "stop" and self._has_called[i] and not named:
            reason = "tool_calls"
        return content, dataclasses.replace(
            plain, finish_reason=reason, reasoning=reasoning, tool_calls=calls
        )

    def _tell(self, request_id: str, error: Exception) -> None:
        """Log a parser's error, once for each request."""
        if not self._told:
            why = f"{type(error).__name__}: {one_line(error)}"
            logger.warning(
                f"{request_id}: vLLM's parser cannot read the text, sent as it is: {why}"
            )
        self._told = True

    def _said_new(self, parser: Any, completion: Any, output: Any) -> Said:
        """Return what is new, read token by token: as one piece it could lose calls or text."""
        said: Said = ("", "", [])
        pieces = by_token(self._decode, completion.text, completion.token_ids)
        for n, (text, token_ids) in enumerate(pieces, 1):
            message = parser.parse_delta(
                delta_text=text,
                delta_token_ids=token_ids,
                request=self._chat,
                prompt_token_ids=output.prompt_token_ids,
                finished=completion.finish_reason is not None and n == len(pieces),
            )
            if message is not None:
                calls = [call.model_dump(exclude_none=True) for call in message.tool_calls]
                new = (message.content or "", message.reasoning or "", calls)
                said = (said[0] + new[0], said[1] + new[1], said[2] + new[2])
        return said

    def _said_all(self, parser: Any, completion: Any, output: Any) -> Said:
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

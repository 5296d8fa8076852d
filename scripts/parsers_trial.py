"""Run one of vLLM's parsers on a text, whole or in pieces as a stream brings it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PIECES = {"by token": 1, "by 4 tokens": 4, "at once": 1_000_000}  # tokens in a piece of a stream


@dataclass(frozen=True, slots=True)
class Said:
    """What a parser made of a text: content, each call with its arguments' JSON, reasoning."""

    content: str
    calls: Sequence[tuple[str, str]] = ()
    reasoning: str = ""


@functools.cache
def loaded(path: str) -> Any:
    """Return the tokenizer in a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@functools.cache
def tokenizer_with(marks: tuple[str, ...], path: str) -> Any:
    """Return a tokenizer that has ``marks`` as tokens, and makes its vocabulary once."""
    tokenizer = copy.deepcopy(loaded(path))
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([mark for mark in marks if mark not in known], special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


class Trial:
    """A tool parser or a reasoning parser of vLLM, with a tokenizer that has its marks."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        prompt: str = "Hi",
    ) -> None:
        """``prompt`` is the text before the answer. Raises what the parser raises at its load."""
        from vllm.parser import ParserManager

        self.tokenizer = tokenizer
        self.prompt_ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
        self._options = {"tools": tools, "tool_choice": "auto"} if tools else {}
        self._template_kwargs = dict(template_kwargs or {})
        self._parser_class = ParserManager.get_parser(
            tool_parser_name=tool_parser,
            reasoning_parser_name=reasoning_parser,
            enable_auto_tools=tool_parser is not None,
        )

    def in_each_way(self, text: str, finished: bool) -> dict[str, Said | str]:
        """Return what the parser makes of a text, "whole" and in pieces; the name of its error."""
        ways = {"whole": functools.partial(self.parse, text, finished)}
        for way, size in PIECES.items():
            ways[way] = functools.partial(self.stream, text, finished, size)
        said: dict[str, Said | str] = {}
        for way, parse in ways.items():
            try:
                said[way] = parse()
            except Exception as error:
                said[way] = type(error).__name__
        return said

    def parse(self, text: str, finished: bool) -> Said:
        """Return what the parser makes of a whole text."""
        request, parser = self.request(stream=False), self.parser()
        if hasattr(parser, "set_prompt_token_ids"):  # newer than 0.26
            parser.set_prompt_token_ids(self.prompt_ids)
        reasoning, content, calls = parser.parse(
            text,
            request,
            enable_auto_tools=bool(self._options),
            model_output_token_ids=self._ids(text, finished),
        )
        made = tuple((call.name, call.arguments) for call in calls or [])
        return Said(content or "", made, reasoning or "")

    def stream(self, text: str, finished: bool, size: int) -> Said:
        """Return the joined parts of a stream whose pieces have ``size`` tokens."""
        request, parser = self.request(stream=True), self.parser()
        content, reasoning, calls = "", "", dict[int, tuple[str, str]]()
        for piece, ids, last in self.pieces(text, finished, size):
            message = parser.parse_delta(piece, ids, request, self.prompt_ids, finished=last)
            if message is None:
                continue
            content += message.content or ""
            reasoning += message.reasoning or ""
            for call in message.tool_calls:
                name, arguments = calls.get(call.index, ("", ""))
                more = call.function
                if more is not None:
                    name, arguments = name + (more.name or ""), arguments + (more.arguments or "")
                calls[call.index] = (name, arguments)
        return Said(content, tuple(calls[index] for index in sorted(calls)), reasoning)

    def parser(self) -> Any:
        """Return a new parser: each keeps the state of one answer."""
        kwargs = dict(self._template_kwargs)
        tools = self.request(stream=False).tools
        return self._parser_class(self.tokenizer, tools, chat_template_kwargs=kwargs)

    def request(self, *, stream: bool) -> Any:
        """Return the request that vLLM's parsers look at."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        messages = [{"role": "user", "content": "Hi"}]
        return ChatCompletionRequest(
            messages=messages,
            stream=stream,
            chat_template_kwargs=dict(self._template_kwargs),
            **self._options,
        )

    def pieces(self, text: str, finished: bool, size: int) -> Iterator[tuple[str, list[int], bool]]:
        """Yield each piece's new text, its tokens, and whether it is the last."""
        ids = self._ids(text, finished)
        shown = 0
        for start in range(0, len(ids), size):
            last = start + size >= len(ids)
            said = ids[: start + size]
            decoded = self.tokenizer.decode(said[:-1] if last and finished else said)
            decoded = decoded if last else decoded.rstrip("\ufffd")
            yield decoded[shown:], ids[start : start + size], last
            shown = len(decoded)

    def _ids(self, text: str, finished: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id] if finished else ids

"""Run one of vLLM's tool parsers on a text, whole or in pieces as a stream brings it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tool_parsers_cases import TOOLS
from tool_parsers_formats import FORMATS


@dataclass(frozen=True, slots=True)
class Said:
    """What a parser made of a text: the content, and each call with its arguments' JSON."""

    content: str
    calls: Sequence[tuple[str, str]]


@functools.cache
def loaded(path: str) -> Any:
    """Return the tokenizer in a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def tokenizer_with(marks: Sequence[str], path: str) -> Any:
    """Return a tokenizer that has ``marks`` as tokens, and makes its vocabulary once."""
    tokenizer = copy.deepcopy(loaded(path))
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([mark for mark in marks if mark not in known], special_tokens=True)
    vocabulary = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


class Trial:
    """One of vLLM's tool parsers, with a tokenizer that has its marks."""

    def __init__(self, name: str, tokenizer_path: str) -> None:
        """Raises what the parser raises if it cannot be loaded."""
        from vllm.parser import ParserManager

        self.form = FORMATS[name]
        self.tokenizer = tokenizer_with(self.form.marks, tokenizer_path)
        self._parser_class = ParserManager.get_parser(
            tool_parser_name=name, reasoning_parser_name=None, enable_auto_tools=True
        )

    def parse(self, text: str, finished: bool) -> Said:
        """Return what the parser makes of a whole text."""
        request, parser = self._request(stream=False), self._parser()
        _, content, calls = parser.parse(
            text, request, enable_auto_tools=True, model_output_token_ids=self._ids(text, finished)
        )
        return Said(content or "", [(call.name, call.arguments) for call in calls or []])

    def stream(self, text: str, finished: bool, size: int) -> Said:
        """Return the joined parts of a stream whose pieces have ``size`` tokens."""
        request, parser = self._request(stream=True), self._parser()
        content, calls = "", dict[int, tuple[str, str]]()
        for piece, ids, last in self._pieces(self._ids(text, finished), size, finished=finished):
            message = parser.parse_delta(piece, ids, request, [1, 2], finished=last)
            if message is None:
                continue
            content += message.content or ""
            for call in message.tool_calls:
                name, arguments = calls.get(call.index, ("", ""))
                more = call.function
                if more is not None:
                    name, arguments = name + (more.name or ""), arguments + (more.arguments or "")
                calls[call.index] = (name, arguments)
        return Said(content, [calls[index] for index in sorted(calls)])

    def _parser(self) -> Any:
        return self._parser_class(self.tokenizer, self._request(stream=False).tools)

    def _request(self, *, stream: bool) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        messages = [{"role": "user", "content": "Hi"}]
        return ChatCompletionRequest(
            messages=messages, tools=TOOLS, tool_choice="auto", stream=stream
        )

    def _ids(self, text: str, finished: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id] if finished else ids

    def _pieces(
        self, ids: list[int], size: int, *, finished: bool
    ) -> Iterator[tuple[str, list[int], bool]]:
        """Yield each piece's new text, its tokens, and whether it is the last."""
        shown = 0
        for start in range(0, len(ids), size):
            last = start + size >= len(ids)
            said = ids[: start + size]
            text = self.tokenizer.decode(said[:-1] if last and finished else said)
            text = text if last else text.rstrip("\ufffd")
            yield text[shown:], ids[start : start + size], last
            shown = len(text)

#!/usr/bin/env bash
# vLLM 0.32.0: tool parsers that return other calls in a stream than for the whole text.
#
#   jamba            by token the arguments are not JSON; in one piece there is no call
#   functiongemma    a brace after each argument: two arguments are not JSON; in one piece no call
#   llama3_json      in one piece no call; a stream that begins with { and is no call has no text
#   phi4_mini_json   no call in a stream, and no text either
#
# A stream has larger pieces with speculative decoding, with stream_interval, and when its reader is
# late. A client that gets no text and no call sees an empty answer with finish_reason "stop".
#
# Output seen on 2026-11-29 (the first case of six):
#   JambaToolParser: <tool_calls>[{"name": "weather", "arguments": {"city": "Paris", "days": 3}}]</tool_calls>
#     whole: ('', ['{"city": "Paris", "days": 3}'])
#     by token: ('', ['{"Paris, "days": 3'])
#     at once: ('', [])
#
# Downloads the wheel (330 MB) into a temporary folder and runs four of its parsers. The rest of vLLM
# and what it imports are stand-ins: no torch, no engine, no model; each character and each mark of a
# format is a token. Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps regex==2026.11.19 partial-json-parser==0.2.1.1.post7
"$folder/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --dest "$folder" vllm==0.32.0
"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("vllm-*.whl")
archive = zipfile.ZipFile(wheel)
archive.extractall(folder, [n for n in archive.namelist() if n.startswith("vllm/tool_parsers/")])
EOP
"$folder/venv/bin/python" - "$folder" <<'EOP'
import importlib.abc
import importlib.machinery
import sys
import types
from unittest.mock import MagicMock

import regex


class Message:
    """A stand-in for vLLM's message classes: whatever it is given, None for the rest."""

    def __init__(self, **given):
        self.__dict__.update(given)

    def __getattr__(self, name):
        return [] if name == "tool_calls" else None

    def model_dump(self, **how):
        return {k: v.model_dump() if isinstance(v, Message) else v for k, v in vars(self).items()}


class StandIn(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "make_tool_call_id":
            return lambda *given, **named: "id"
        if name.startswith("is_"):
            return lambda *given: False
        if name.isupper():  # settings, such as a time limit
            return None
        return type(name, (Message,), {}) if name[0].isupper() else MagicMock()


STAND_INS = ("vllm", "openai", "transformers", "torch", "pydantic", "xgrammar", "partial_json")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """All of vLLM but its tool parsers, which come from the wheel."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in STAND_INS and not name.startswith("vllm.tool_parsers"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        if module.__name__ == "vllm":
            module.__path__ = [sys.argv[1] + "/vllm"]


sys.meta_path.insert(0, StandIns())
from vllm.tool_parsers.jamba_tool_parser import JambaToolParser
from vllm.tool_parsers.llama_tool_parser import Llama3JsonToolParser
from vllm.tool_parsers.phi4mini_tool_parser import Phi4MiniJsonToolParser
from vllm.tool_parsers.functiongemma_tool_parser import FunctionGemmaToolParser


class Tokenizer:
    """Each mark is a token, and each other character."""

    def __init__(self, *marks):
        self.marks = {mark: 1_000_000 + i for i, mark in enumerate(marks)}

    def get_vocab(self):
        return self.marks

    def encode(self, text, **how):
        return [self.marks.get(piece) or ord(piece) for piece in self.pieces(text)]

    def pieces(self, text):
        return regex.findall("|".join([*map(regex.escape, self.marks), "."]), text)


def joined(deltas):
    content, calls = "", {}
    for delta in deltas:
        content += (delta.content or "") if delta else ""
        for call in delta.tool_calls if delta else []:
            given = call.function if isinstance(call.function, dict) else vars(call.function)
            calls[call.index] = calls.get(call.index, "") + (given.get("arguments") or "")
    return content, list(calls.values())


def streamed(parser, tokenizer, text, at_once):
    pieces = [text] if at_once else tokenizer.pieces(text)
    before, deltas = "", []
    for piece in pieces:
        ids = [tokenizer.encode(part) for part in (before, before + piece, piece)]
        deltas.append(
            parser.extract_tool_calls_streaming(before, before + piece, piece, *ids, Message())
        )
        before += piece
    return joined(deltas)


def whole(parser, text):
    said = parser.extract_tool_calls(text, Message())
    return said.content or "", [call.function.arguments for call in said.tool_calls or []]


GIVEN = '{"city": "Paris", "days": 3}'
CALL = '{"name": "weather", "arguments": ' + GIVEN + "}"
JAMBA = ("<tool_calls>", "</tool_calls>")
GEMMA = ("<start_function_call>", "<end_function_call>")
ESCAPED = "call:weather{city:<escape>Paris<escape>,days:<escape>3<escape>}"
TAG = ("<|python_tag|>",)
OBJECT = '{"x": 1} is an object.'
RIGHT, NOTHING = ("", [GIVEN]), ("", [])
cases = [  # parser, its marks, the text, and what it makes of it: whole, by token, at once
    (JambaToolParser, JAMBA, f"{JAMBA[0]}[{CALL}]{JAMBA[1]}", RIGHT, ("", ['{"Paris, "days": 3']), NOTHING),
    (FunctionGemmaToolParser, GEMMA, GEMMA[0] + ESCAPED + GEMMA[1], RIGHT, ("", ['{"city": "Paris"} "days": 3}']), NOTHING),
    (Llama3JsonToolParser, TAG, CALL, RIGHT, RIGHT, NOTHING),
    (Llama3JsonToolParser, TAG, OBJECT, (OBJECT, []), NOTHING, NOTHING),
    (Phi4MiniJsonToolParser, (), f"functools[{CALL}]", RIGHT, NOTHING, NOTHING),
    (Phi4MiniJsonToolParser, (), "It rains.", ("It rains.", []), NOTHING, NOTHING),
]
failed = False
for parser, marks, text, *expected in cases:
    tokenizer = Tokenizer(*marks)
    found = [whole(parser(tokenizer), text)]
    found += [streamed(parser(tokenizer), tokenizer, text, at_once) for at_once in (False, True)]
    print(f"{parser.__name__}: {text}")
    for way, seen, known in zip(("whole", "by token", "at once"), found, expected):
        failed |= seen != known
        print(f"  {way}: {seen}{'' if seen == known else ' DIFFERENT'}")
sys.exit(failed)
EOP

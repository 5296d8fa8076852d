#!/usr/bin/env bash
# vLLM 0.32.0: reasoning parsers that split an answer otherwise in a stream than as a whole.
#
#   olmo3        in one piece the answer is missing
#   granite      in one piece the reasoning is missing
#   ernie45      by token the marks <response> and </response> are in the content; in one piece a part
#   k2_horizon   the whole of a cut reasoning is content; streamed it is reasoning
#
# A stream has larger pieces with speculative decoding, with stream_interval, and when its reader is
# late. Reasoning is cut when it reaches max_tokens.
#
# Output seen on 2026-11-29 (the first case of four):
#   olmo3: <think>2 + 2 is 4.</think>It is 4.
#     whole: ('2 + 2 is 4.', 'It is 4.')
#     by token: ('2 + 2 is 4.', 'It is 4.')
#     at once: ('2 + 2 is 4.', '')
#
# Downloads the wheel (330 MB) into a temporary folder and runs four of its parsers. The rest of vLLM
# and what it imports are stand-ins: no torch, no engine, no model; each mark of a format is a
# token, each word and each other character. Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps regex==2026.11.19
"$folder/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --dest "$folder" vllm==0.32.0
"$folder/venv/bin/python" - "$folder" <<'EOP'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("vllm-*.whl")
archive = zipfile.ZipFile(wheel)
parts = ("vllm/reasoning/", "vllm/parser/abstract_parser.py")
archive.extractall(folder, [n for n in archive.namelist() if n.startswith(parts)])
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

    AUTO = None

    def __init__(self, **given):
        self.__dict__.update(given)

    def __getattr__(self, name):
        return None


def partial_tag_overlap(text, tag):
    """Return how many letters at the end of a text begin a tag, as vLLM's function does."""
    return max(n for n in range(len(tag)) if text.endswith(tag[:n]))


class StandIn(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "partial_tag_overlap":
            return partial_tag_overlap
        return type(name, (Message,), {}) if name[0].isupper() else MagicMock()


STAND_INS = ("vllm", "openai", "transformers", "pydantic", "xgrammar")
REAL = ("vllm.reasoning", "vllm.parser.abstract_parser")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """All of vLLM but its reasoning parsers and what calls them, which come from the wheel."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in STAND_INS and not name.startswith(REAL):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        if module.__name__ in ("vllm", "vllm.parser"):
            module.__path__ = ["/".join([sys.argv[1], *module.__name__.split(".")])]


sys.meta_path.insert(0, StandIns())
from vllm.parser.abstract_parser import DelegatingParser
from vllm.reasoning import ReasoningParserManager


class Tokenizer:
    """Each mark is a token, and each word and other character."""

    def __init__(self, marks):
        self.pattern = "|".join([*map(regex.escape, marks), r" ?\w+", "."])
        self.ids = {mark: 1_000 + i for i, mark in enumerate(marks)}

    def get_vocab(self):
        return self.ids

    def encode(self, text, **how):
        return [self.ids.setdefault(piece, 1_000 + len(self.ids)) for piece in self.pieces(text)]

    def pieces(self, text):
        return regex.findall(self.pattern, text, regex.DOTALL)


def parser_of(name, marks):
    class Parser(DelegatingParser):
        reasoning_parser_cls = ReasoningParserManager.get_reasoning_parser(name)

    return Parser(Tokenizer(marks))


def whole(parser, text):
    reasoning, content, _ = parser.parse(text, Message(include_reasoning=True))
    return reasoning or "", content or ""


def streamed(parser, text, at_once):
    pieces = [text] if at_once else parser.model_tokenizer.pieces(text)
    request = Message(include_reasoning=True)
    reasoning = content = ""
    for n, piece in enumerate(pieces, 1):
        ids = parser.model_tokenizer.encode(piece)
        said = parser.parse_delta(piece, ids, request, [1], finished=n == len(pieces)) or Message()
        reasoning += said.reasoning or ""
        content += said.content or ""
    return reasoning, content


THINK = ("<think>", "</think>")
ERNIE = (*THINK, "<response>", "</response>")
IFM = ("<ifm|think>", "</ifm|think>")
R, A = "2 + 2 is 4.", "It is 4."
RIGHT = (R, A)
GRANITE = f"Here is my thought process: {R} Here is my response: {A}"
RESPONSE = f"<response>{A}</response>"
cases = [  # parser, its marks, the text, and (reasoning, content): whole, by token, at once
    ("olmo3", ("<", "</", "think", ">", "\u0120</"), f"<think>{R}</think>{A}", RIGHT, RIGHT, (R, "")),
    ("granite", (), GRANITE, (f" {R} ", f" {A}"), (f" {R} ", f" {A}"), ("", f" {A}")),
    ("ernie45", ERNIE, f"{R}</think>{RESPONSE}", RIGHT, (R, RESPONSE), (R, f"{A}</response")),
    ("k2_horizon", IFM, f"{IFM[0]}{R}", ("", R), (R, ""), (R, "")),
]
failed = False
for name, marks, text, *expected in cases:
    parsers = [parser_of(name, marks) for _ in expected]
    found = [whole(parsers[0], text)]
    found += [streamed(parsers[n], text, at_once) for n, at_once in ((1, False), (2, True))]
    print(f"{name}: {text}")
    for way, seen, known in zip(("whole", "by token", "at once"), found, expected):
        failed |= seen != known
        print(f"  {way}: {seen}{'' if seen == known else ' DIFFERENT'}")
sys.exit(failed)
EOP

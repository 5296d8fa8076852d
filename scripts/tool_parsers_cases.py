"""What a model says with tools: the cases that each of vLLM's tool parsers is tried with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]  # a function's name and its arguments

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "ratio": {"type": "number"},
        "metric": {"type": "boolean"},
        "options": {"type": "object"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {
        "type": "function",
        "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}},
    },
]


@dataclass(frozen=True, slots=True)
class Case:
    """What a model says: text before and after calls. ``cut`` is the part that is said of it."""

    name: str
    calls: Sequence[Call] = ()
    before: str = ""
    after: str = ""
    cut: float = 1.0


PARIS: Call = ("weather", {"city": "Paris", "days": 3})
TYPES: dict[str, Any] = {
    "city": "75001",
    "days": -2,
    "ratio": 0.5,
    "metric": True,
    "options": {"a": {"b": None}},
    "tags": ["x", "2"],
}
BEFORE = "Let me look."
CUT = Case("cut", [PARIS], before=BEFORE, cut=0.7)
CASES = (
    Case("a call", [PARIS]),
    Case("text before", [PARIS], before=BEFORE),
    Case("text after", [PARIS], after="That is all."),
    Case("two calls", [PARIS, ("weather", {"city": "Rome", "days": 1})]),
    Case("no arguments", [("ping", {})]),
    Case("types", [("weather", TYPES)]),
    Case("marks in a string", [("weather", {"city": "São \"P\" <b> & {x}\n\\n [1], 'q'"})]),
    Case("text alone", before="If a < b, then {x: [1]} is it."),
    Case("text that begins with {", before='{"x": 1} is an object.'),
    CUT,
)

"""What a model says with reasoning: the cases that each reasoning parser is tried with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REASONING = "Two and two are four."
ANSWER = "It is 4."


@dataclass(frozen=True, slots=True)
class Case:
    """A text of a model, and what of it is reasoning and what is the answer.

    ``text`` and ``prompt``, which ends the model's prompt, have the marks as {start} and {end}, and
    a text the answer as {answer}. ``finished`` is false if the answer was cut by its length, and
    ``off`` if the request switched thinking off.
    """

    name: str
    text: str
    reasoning: str = REASONING
    answer: str = ANSWER
    prompt: str = ""
    more: Sequence[str] = ()  # what is said after a second end mark
    finished: bool = True
    off: bool = False


CASES = (
    Case("well formed", "{start}" + REASONING + "{end}{answer}"),
    Case("start mark in the prompt", REASONING + "{end}{answer}", prompt="{start}"),
    Case("no start mark", REASONING + "{end}{answer}"),
    Case("cut", "{start}Two and two", reasoning="Two and two", answer="", finished=False),
    Case("no end mark", "{start}" + REASONING, answer=""),
    Case("no marks", "{answer}", reasoning=""),
    Case("second end mark", "{start}" + REASONING + "{end}{answer}", more=("I am sure.",)),
    Case("empty reasoning", "{start}{end}{answer}", reasoning=""),
    Case("newlines", "{start}\n" + REASONING + "\n{end}\n\n{answer}"),
    Case("thinking off", "{answer}", reasoning="", prompt="{start}{end}", off=True),
)

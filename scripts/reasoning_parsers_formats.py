"""How a model writes reasoning for each reasoning parser of vLLM 0.26 to 0.32.

The formats are those that the parsers' own documentation shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasoning_parsers_cases import Case


@dataclass(frozen=True, slots=True)
class Format:
    """The marks around reasoning, and what is around an answer.

    ``marks`` are the pieces that the models' tokenizers have as one token each. ``on`` and ``off``
    are the chat template's arguments that switch thinking on and off; ``off`` is None if the parser
    looks at none.
    """

    start: str = "<think>"
    end: str = "</think>"
    answer: str = "{}"
    marks: Sequence[str] = ("<think>", "</think>")
    on: Mapping[str, Any] | None = None
    off: Mapping[str, Any] | None = None

    def written(self, case: Case) -> str:
        """Return the text of a case."""
        answer = self.answer.format(f"{self.end} ".join([case.answer, *case.more]))
        return self._with_marks(case.text).replace("{answer}", answer)

    def prompt(self, case: Case) -> str:
        """Return a prompt that ends as the case says."""
        return "Hi" + self._with_marks(case.prompt)

    def _with_marks(self, text: str) -> str:
        return text.replace("{start}", self.start).replace("{end}", self.end)


_OFF = {"enable_thinking": False, "thinking": False}
_THINKS = Format()
_SWITCHED = Format(off=_OFF)
_ASKED = Format(on={"thinking": True}, off=_OFF)
_MUSE = "<|start|> <|message|> <|eom|> <|eot|>"
_PLAMO = ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>")

FORMATS: dict[str, Format] = {
    "deepseek_r1": _THINKS,
    "deepseek_v3": _ASKED,
    "deepseek_v4": _SWITCHED,
    "deepseek_v41": _SWITCHED,
    "ernie45": Format(
        answer="\n\n<response>\n{}\n</response>\n",
        marks=("<think>", "</think>", "<response>", "</response>"),
    ),
    "gemma4": Format(
        "<|channel>thought\n",
        "<channel|>",
        marks=("<|channel>", "<channel|>"),
        on={"enable_thinking": True},
        off=_OFF,
    ),
    "glm45": _SWITCHED,
    "glm47": _SWITCHED,
    "granite": Format("Here is my thought process:", "Here is my response:", marks=()),
    "granite_thinking_parser": _SWITCHED,
    "holo2": _SWITCHED,
    "hy_v3": Format(on={"reasoning_effort": "high"}, off={"reasoning_effort": "no_think"}),
    "hy_v4": Format(off={"reasoning_effort": "no_think"}),
    "inkling": Format(
        "<|message_model|><|content_thinking|>",
        "<|end_message|>",
        "<|message_model|><|content_text|>{}<|end_message|>",
        ("<|message_model|>", "<|content_text|>", "<|content_thinking|>", "<|end_message|>"),
    ),
    "k2_horizon": Format(
        "<ifm|think>", "</ifm|think>", marks=("<ifm|think>", "</ifm|think>", "<ifm|tool_calls>")
    ),
    "kimi_k2": _SWITCHED,
    "kimi_k3": Format(
        "<|open|>think<|sep|>",
        "<|close|>think<|sep|>",
        "<|open|>response<|sep|>{}<|close|>response<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>"),
        off=_OFF,
    ),
    "ling3": _SWITCHED,
    "mimo": _SWITCHED,
    "minicpmv": Format(on={"enable_thinking": True}, off=_OFF),
    "minimax_m2": _THINKS,
    "minimax_m2_append_think": _THINKS,
    "minimax_m3": Format(
        "<mm:think>",
        "</mm:think>",
        marks=("<mm:think>", "</mm:think>"),
        on={"thinking_mode": "enabled"},
        off={"thinking_mode": "disabled"},
    ),
    "mistral": Format("[THINK]", "[/THINK]", marks=("[THINK]", "[/THINK]", "[TOOL_CALLS]")),
    "muse_glimmer": Format(
        " to=self<|message|>",
        "<|eom|>",
        "<|start|>assistant to=user<|message|>{}<|eot|>",
        _MUSE.split(),
    ),
    "nemotron_v3": _SWITCHED,
    "olmo3": Format(marks=()),
    "plamo3": Format(*_PLAMO, marks=_PLAMO, off=_OFF),
    "poolside_v1": Format(
        marks=("<think>", "</think>", "<assistant>"), on={"thinking": True}, off=_OFF
    ),
    "qwen3": _SWITCHED,
    "seed_oss": Format(
        "<seed:think>", "</seed:think>", marks=("<seed:think>", "</seed:think>"), off=_OFF
    ),
    "step3": _THINKS,
    "step3p5": _THINKS,
}
# The parsers without a format here, and why.
NOT_TRIED = {
    "openai_gptoss": "reads gpt-oss's token ids, with its own tokenizer",
    "hf": "takes its format from the model's tokenizer",
    "hunyuan_a13b": "reads the token ids of Hunyuan's tokenizer",
    "cohere_command3": "needs the package cohere_melody",
    "cohere_command4": "needs the package cohere_melody",
    "beam": "new in vLLM 0.33",
    "muse": "new in vLLM 0.33",
    "musespark1x": "new in vLLM 0.33",
    "step5": "new in vLLM 0.33",
}

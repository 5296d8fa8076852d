"""vLLM's reasoning parsers, whole and streamed: what the docs say of them is what they do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import vllm
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.reasoning import ReasoningParserManager

from parsers_trial import Said, Trial, tokenizer_with
from reasoning_parsers_cases import ANSWER, CASES, REASONING
from reasoning_parsers_formats import FORMATS, NOT_TRIED
from reasoning_parsers_table import PAGE, cells_of, trials
from triton_vllm.vllm_api.render.chat_reader import ChatReader

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))
TOKENIZER = str(CACHE / "models/SmolLM2-135M-Instruct")
MEASURED = PAGE.measured()[f"vLLM {vllm.__version__}"]
PARAMS = SamplingParams(skip_special_tokens=False)  # as a parser asks whose marks are special


def test_every_parser_is_in_the_docs() -> None:
    """A parser that vLLM adds is tried, or is listed as not tried."""
    assert set(ReasoningParserManager.list_registered()) - set(NOT_TRIED) == set(MEASURED)
    assert set(MEASURED) <= set(FORMATS)


@pytest.mark.parametrize("parser", MEASURED)
def test_what_a_parser_does_is_what_the_docs_say(parser: str) -> None:
    """Case by case, whole and in pieces of a stream."""
    assert MEASURED[parser] == cells_of(parser, TOKENIZER)


def output(trial: Trial, text: str, token_ids: list[int], reason: str | None) -> RequestOutput:
    """Return vLLM's output of a sequence."""
    sequence = CompletionOutput(0, text, token_ids, None, None, finish_reason=reason)
    return RequestOutput("1", None, trial.prompt_ids, None, [sequence], reason is not None)


def read(trial: Trial, text: str, finished: bool, size: int | None) -> Said:
    """Return what our reader makes of a text: whole, or in pieces of ``size`` tokens."""
    stream = size is not None
    request: Any = trial.request(stream=stream)
    reader = ChatReader(request, [trial.parser()], PARAMS, trial.tokenizer, stream=stream)
    content = reasoning = ""
    for piece, token_ids, last in trial.pieces(text, finished, size or 1_000_000):
        reason = ("stop" if finished else "length") if last else None
        delta = reader.read(output(trial, piece, token_ids, reason))
        content += delta.texts[0]
        if delta.extras is not None:
            reasoning += delta.extras.sequences[0].reasoning
    return Said(content, (), reasoning)


# Without one that takes no tokenizer but its model's, as Mistral's of 0.26.
@pytest.mark.parametrize(
    "parser", [name for name in MEASURED if "ValueError" not in MEASURED[name]["whole"].values()]
)
def test_our_reader_adds_no_difference(parser: str) -> None:
    """Whole as vLLM's parser does; a stream as by token, however many tokens a piece has."""
    for case, trial, text in trials(parser, TOKENIZER):
        given = (text, case.finished)
        assert trial.parse(*given) == read(trial, *given, None), case.name
        assert trial.stream(*given, 1) == read(trial, *given, 4), case.name


@pytest.mark.parametrize("tool_parser", [None, "inkling"])
def test_a_tool_parser_keeps_a_mark_out_of_a_stream(tool_parser: str | None) -> None:
    """As the docs advise for Inkling, also if a request has no tools."""
    form, case = FORMATS["inkling"], CASES[0]
    tokenizer = tokenizer_with(tuple(form.marks), TOKENIZER)
    trial = Trial(tokenizer, reasoning_parser="inkling", tool_parser=tool_parser)
    said = trial.stream(form.written(case), True, 1)
    assert REASONING == said.reasoning
    if tool_parser:
        assert ANSWER == said.content
    else:
        assert said.content.endswith(f"{ANSWER}<|end_message|>")

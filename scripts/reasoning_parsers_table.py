#!/usr/bin/env python3
"""Shows which of vLLM's reasoning parsers split an answer the same way whole and streamed.

Runs each parser on the texts of reasoning_parsers_cases.py: on the whole text, token by token, by
four tokens at a time, and on all tokens at once as a stream's only piece. Run it with the Python of
an environment that has vLLM:

    vllm_env/bin/python scripts/reasoning_parsers_table.py TOKENIZER             # print the cells
    vllm_env/bin/python scripts/reasoning_parsers_table.py TOKENIZER --update    # into the file
    python3 scripts/reasoning_parsers_table.py --docs                            # into the docs

TOKENIZER is the folder of a model with a byte-level tokenizer, such as SmolLM2-135M-Instruct.
Writes docs/reasoning-parsers.json and the tables of docs/reasoning-parsers.md. Takes 15 seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from parsers_page import Cells, Page, grouped
from parsers_trial import PIECES, Said, Trial, tokenizer_with
from reasoning_parsers_cases import CASES, Case
from reasoning_parsers_formats import FORMATS

DIFFERS = "whole and by token"  # the cell that compares the two


def verdict(case: Case, said: Said) -> str:
    """Return what differs from a case, spaces and newlines aside; "right" if nothing does."""
    answers = [case.answer, *case.more]
    if [case.reasoning.split(), " ".join(answers).split()] == [
        said.reasoning.split(),
        said.content.split(),
    ]:
        return "right"
    faults = _misplaced("reasoning", case.reasoning, said.reasoning, said.content, "the content")
    for answer in answers:
        faults += _misplaced("answer", answer, said.content, said.reasoning, "the reasoning")
    for name, text in (("reasoning", said.reasoning), ("content", said.content)):
        for part in (case.reasoning, *answers):
            text = text.replace(part, "") if part else text
        known = " ".join([case.reasoning, *answers]).split()
        if any(word not in known for word in text.split()):
            faults.append(f"marks in the {name}")
    return ", ".join(dict.fromkeys(faults)) or "text twice"


def _misplaced(name: str, part: str, place: str, other: str, others_name: str) -> list[str]:
    """Return where a part of a text is, if not in its place."""
    if part in place:
        return []
    return [f"{name} in {others_name}" if part in other else f"{name} lost"]


def difference(whole: Said | str, streamed: Said | str) -> str:
    """Return how a stream differs from the whole answer; "same" if it does not."""
    if whole == streamed:
        return "same"
    if isinstance(whole, str) or isinstance(streamed, str):
        return "text"
    words = [(said.reasoning.split(), said.content.split()) for said in (whole, streamed)]
    return "newlines" if words[0] == words[1] else "text"


def trials(name: str, tokenizer_path: str) -> Iterator[tuple[Case, Trial, str]]:
    """Yield each case of a parser with what runs the parser, and the text."""
    form = FORMATS[name]
    tokenizer = tokenizer_with(tuple(form.marks), tokenizer_path)
    for case in CASES:
        if case.off and form.off is None:
            continue
        trial = Trial(
            tokenizer,
            reasoning_parser=name,
            template_kwargs=form.off if case.off else form.on,
            prompt=form.prompt(case),
        )
        yield case, trial, form.written(case)


def cells_of(name: str, tokenizer_path: str) -> Cells:
    """Return for each way to parse the cases that are not right, and those that differ."""
    cells: Cells = {way: {} for way in ("whole", *PIECES, DIFFERS)}
    for case, trial, text in trials(name, tokenizer_path):
        said = trial.in_each_way(text, case.finished)
        for way, found in said.items():
            fault = found if isinstance(found, str) else verdict(case, found)
            if fault != "right":
                cells[way][case.name] = fault
        differs = difference(said["whole"], said["by token"])
        if differs != "same":
            cells[DIFFERS][case.name] = differs
    return cells


def all_cells(tokenizer_path: str) -> dict[str, Cells]:
    """Return the cells of the parsers that this vLLM has and that can be tried."""
    from vllm.reasoning import ReasoningParserManager

    names = [name for name in ReasoningParserManager.list_registered() if name in FORMATS]
    return {name: cells_of(name, tokenizer_path) for name in names}


def row(cells: Cells) -> str:
    """Return a parser's row but for its name."""
    whole, token = _listed(cells["whole"]), _listed(cells["by token"])
    several = _listed(cells["by 4 tokens"], cells["at once"])
    return " | ".join(
        [
            _listed(cells[DIFFERS], none="yes"),
            whole,
            "as whole" if token == whole else token,
            "as by token" if several == token else several,
        ]
    )


def _listed(*cells: dict[str, str], none: str = "right") -> str:
    found = grouped(*cells)
    return "; ".join(f"{fault} ({_named(found[fault])})" for fault in found) or none


def _named(names: list[str]) -> str:
    """Return the names of cases; a group of which each case is named has a name of its own."""
    cases = [case for case in CASES if not case.off]
    groups = {
        "every case": cases,
        "every case with reasoning": [case for case in cases if case.reasoning],
        "every case with an answer": [case for case in cases if case.answer],
    }
    for group, members in groups.items():
        inside = [case.name for case in members]
        if set(inside) <= set(names):
            return ", ".join([group, *(name for name in names if name not in inside)])
    return ", ".join(names)


PAGE = Page(
    "reasoning-parsers",
    ["Whole = streamed?", "Whole", "Streamed, by token", "Streamed, several tokens"],
    row,
    all_cells,
)

if __name__ == "__main__":
    PAGE.main(__doc__.splitlines()[0] if __doc__ else "")

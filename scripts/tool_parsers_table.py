#!/usr/bin/env python3
"""Shows which of vLLM's tool parsers give the same calls whole and streamed.

Runs each parser on the texts of tool_parsers_formats.py: on the whole text, token by token, by four
tokens at a time, and on all tokens at once as a stream's only piece. Run it with the Python of an
environment that has vLLM:

    vllm_env/bin/python scripts/tool_parsers_table.py TOKENIZER             # print the cells
    vllm_env/bin/python scripts/tool_parsers_table.py TOKENIZER --update    # write them to the file
    python3 scripts/tool_parsers_table.py --docs                            # the file into the docs

TOKENIZER is the folder of a model with a byte-level tokenizer, such as SmolLM2-135M-Instruct.
Writes docs/tool-parsers.json and the tables of docs/tool-parsers.md. Takes half a minute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from parsers_page import Cells, Page, grouped
from parsers_trial import PIECES, Said, Trial, tokenizer_with
from tool_parsers_cases import BEFORE, CASES, CUT, TOOLS, Call, Case
from tool_parsers_formats import FORMATS
from tool_parsers_markup import Format


def written(form: Format, case: Case) -> str:
    """Return the text of a case, cut where it says."""
    before, after = (form.text.format(text) if text else "" for text in (case.before, case.after))
    whole = before + form.calls(case.calls) + after
    return whole if case.cut == 1 else (before + form.calls(case.calls)[: _cut(form, case)])


def _cut(form: Format, case: Case) -> int:
    """Return the place in the middle of the first argument's value."""
    return form.calls(case.calls).index("Paris") + 3


def verdict(case: Case, said: Said) -> str:
    """Return what differs from the calls and the text of a case, "right" if nothing does."""
    faults = _faults_of_calls(case.calls, said.calls)
    intended = (case.before + case.after).split()
    if said.content.split() != intended:
        kept = all(word in said.content for word in intended)
        faults.append("marks in the text" if kept else "text lost")
    return ", ".join(faults) or "right"


def _faults_of_calls(intended: Sequence[Call], calls: Sequence[tuple[str, str]]) -> list[str]:
    if len(calls) != len(intended):
        return ["no call" if not calls else "a call too few"]
    faults = []
    for (name, given), (said, arguments) in zip(intended, calls, strict=True):
        if name != said:
            faults.append("another name")
        try:
            if json.loads(arguments) != given:
                faults.append("other arguments")
        except ValueError:
            faults.append("arguments not JSON" if arguments else "arguments empty")
    return list(dict.fromkeys(faults))


def cut_verdict(said: Said) -> str:
    """Return what came of a call that was cut."""
    if not said.calls:
        return "no call, the text" if said.content.strip() != BEFORE else "no call"
    try:
        arguments = json.loads(said.calls[0][1])
    except ValueError:
        return "a part of the call"
    return f"a call with `{json.dumps(arguments)}`"


def verdict_of(case: Case, said: Said | str) -> str:
    """Return the verdict on what a parser made of a case; the name of an error is its own."""
    if isinstance(said, str):
        return said
    return verdict(case, said) if case.cut == 1 else cut_verdict(said)


def cells_of(name: str, tokenizer_path: str) -> Cells:
    """Return for each way to parse the cases that are not right, and the cut one."""
    form = FORMATS[name]
    tokenizer = tokenizer_with(tuple(form.marks), tokenizer_path)
    trial = Trial(tokenizer, tool_parser=name, tools=TOOLS)
    cells: Cells = {way: {} for way in ("whole", *PIECES)}
    for case in CASES:
        for way, said in trial.in_each_way(written(form, case), case.cut == 1).items():
            found = verdict_of(case, said)
            if found != "right":
                cells[way][case.name] = found
    return cells


def all_cells(tokenizer_path: str) -> dict[str, Cells]:
    """Return the cells of the parsers that this vLLM has and that can be tried."""
    from vllm.tool_parsers import ToolParserManager

    names = [name for name in ToolParserManager.list_registered() if name in FORMATS]
    return {name: cells_of(name, tokenizer_path) for name in names}


def faults(*cells: Mapping[str, str]) -> str:
    """Return the faults of one or more ways as one cell of the docs: each with its cases."""
    whole = ({case: way[case] for case in way if case != CUT.name} for way in cells)
    cases = grouped(*whole)
    return "; ".join(f"{fault} ({_named(cases[fault])})" for fault in cases) or "right"


def _named(cases: Sequence[str]) -> str:
    every = [case.name for case in CASES if case.calls and case is not CUT]
    if not set(every) <= set(cases):
        return ", ".join(cases)
    return ", ".join(["every call", *(case for case in cases if case not in every)])


def row(cells: Cells) -> str:
    """Return a parser's row but for its name."""
    whole, token, *several = (cells[way] for way in ("whole", *PIECES))
    more = faults(*several)
    more = "as by token" if more == faults(token) else more
    cut = f"{whole[CUT.name]} / {token[CUT.name]}"
    return f"{faults(whole)} | {faults(token)} | {more} | {cut}"


PAGE = Page(
    "tool-parsers",
    ["Whole", "Streamed, by token", "Streamed, several tokens", "A cut call: whole / by token"],
    row,
    all_cells,
)

if __name__ == "__main__":
    PAGE.main(__doc__.splitlines()[0] if __doc__ else "")

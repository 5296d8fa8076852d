#!/usr/bin/env python3
"""Show what vLLM's structured-output libraries do with each keyword and regex construct.

Runs each library's own matcher on the concrete strings of structured_outputs_cases.py, and vLLM's
own checks where vLLM is installed. Run it with the Python of an environment that has the libraries:

    vllm_env/bin/python scripts/structured_outputs_table.py            # print the cells as JSON
    vllm_env/bin/python scripts/structured_outputs_table.py --update   # write them into the file
    python3 scripts/structured_outputs_table.py --docs                 # the file into the docs

Writes docs/structured-outputs.json and the table of docs/structured-outputs.md. Takes a minute.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from structured_outputs_cases import REGEXES, SCHEMAS, Case

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "docs/structured-outputs.json"
DOCS = ROOT / "docs/structured-outputs.md"
BEGIN = "<!-- The table: written by scripts/structured_outputs_table.py --docs -->"
END = "<!-- The table ends. -->"

_END = 256  # the token that ends a text; each byte is a token
_VOCABULARY = [bytes([byte]) for byte in range(256)] + [b"<end>"]

Matches = Callable[[str], bool]
Compile = Callable[[Any], Matches]  # raises for what the library refuses
Cells = dict[str, dict[str, str]]  # group -> name of the case -> what the library does


def xgrammar() -> tuple[Compile, Compile]:
    """Return the functions by which xgrammar compiles a schema and a regex."""
    import xgrammar as xgr

    info = xgr.TokenizerInfo(
        _VOCABULARY, vocab_type=xgr.VocabType.RAW, vocab_size=257, stop_token_ids=[_END]
    )
    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def matches(compiled: Any) -> Matches:
        def match(text: str) -> bool:
            matcher = xgr.GrammarMatcher(compiled)
            return bool(matcher.accept_string(text) and matcher.accept_token(_END))

        return match

    return (
        lambda schema: matches(compiler.compile_json_schema(json.dumps(schema))),
        lambda regex: matches(compiler.compile_regex(regex)),
    )


def llguidance() -> tuple[Compile, Compile]:
    """Return the functions by which llguidance compiles a schema and a regex."""
    import llguidance as llg

    class Tokens:
        eos_token_id = _END
        bos_token_id = None
        tokens = _VOCABULARY
        special_token_ids = (_END,)

        def __call__(self, text: str) -> list[int]:
            return list(text.encode())

    tokenizer = llg.LLTokenizer(llg.TokenizerWrapper(Tokens()), n_vocab=257)

    def matches(grammar: str) -> Matches:
        if error := llg.LLMatcher.validate_grammar(grammar, tokenizer):
            raise ValueError(error)

        def match(text: str) -> bool:
            matcher = llg.LLMatcher(tokenizer, grammar, log_level=0)
            tokens = list(text.encode())
            return bool(matcher.validate_tokens([*tokens, _END]) == len(tokens) + 1)

        return match

    return (
        lambda schema: matches(llg.LLMatcher.grammar_from_json_schema(json.dumps(schema))),
        lambda regex: matches(llg.grammar_from("regex", regex)),
    )


def outlines_core() -> tuple[Compile, Compile]:
    """Return those of outlines_core, which turns a schema into a regex."""
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema

    vocabulary = Vocabulary(_END, {bytes([byte]): [byte] for byte in range(256)})

    def matches(regex: str) -> Matches:
        index = Index(regex, vocabulary)

        def match(text: str) -> bool:
            guide = Guide(index)
            for token in text.encode():
                if token not in guide.get_tokens():
                    return False
                guide.advance(token)
            return _END in guide.get_tokens()

        return match

    return lambda schema: matches(build_regex_from_schema(json.dumps(schema))), matches


def lm_format_enforcer() -> tuple[Compile, Compile]:
    """Return those of lm-format-enforcer, which parses character by character."""
    from lmformatenforcer import CharacterLevelParserConfig, JsonSchemaParser, RegexParser

    config = CharacterLevelParserConfig(alphabet="".join(map(chr, range(1, 256))) + "😀")

    def matches(start: Any) -> Matches:
        def match(text: str) -> bool:
            parser = start
            for character in text:
                if character not in parser.get_allowed_characters():
                    return False
                parser = parser.add_character(character)
            return bool(parser.can_end())

        return match

    return (
        lambda schema: matches(JsonSchemaParser(schema, config)),
        lambda regex: matches(RegexParser(regex, config)),
    )


LIBRARIES = {
    "xgrammar": xgrammar,
    "llguidance": llguidance,
    "outlines_core": outlines_core,
    "lm-format-enforcer": lm_format_enforcer,
}
# vLLM's name of the backend, and its own check before the library sees a request.
VLLM_CHECKS = {
    "xgrammar": ("backend_xgrammar", "validate_xgrammar_grammar"),
    "guidance": ("backend_guidance", "validate_guidance_grammar"),
    "outlines": ("backend_outlines", "validate_structured_output_request_outlines"),
    "lm-format-enforcer": (
        "backend_lm_format_enforcer",
        "validate_structured_output_request_lm_format_enforcer",
    ),
}


def effect(compile_: Compile, case: Case) -> str:
    """Return what a library does with a case: enforced, narrowed, ignored, wrong or refused."""
    try:
        match = compile_(case.given)
        denied = [text for text in case.allowed if not _matches(match, text)]
        granted = [text for text in case.forbidden if _matches(match, text)]
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return "refused"
    details = [f"not {text}" for text in denied] + [f"takes {text}" for text in granted]
    if not details:
        return "enforced"
    if not granted:
        kind = "narrowed"
    elif denied:
        kind = "wrong"
    else:
        kind = "ignored" if len(granted) == len(case.forbidden) else "partly"
    return f"{kind}: {'; '.join(details)}"


def _matches(match: Matches, text: str) -> bool:
    return match(text)


def cells_of(library: str) -> Cells:
    """Return the cells of an installed library."""
    schema, regex = LIBRARIES[library]()
    return {
        "schema": {case.name: effect(schema, case) for case in SCHEMAS},
        "regex": {case.name: effect(regex, case) for case in REGEXES},
    }


def vllm_refuses(backend: str) -> dict[str, list[str]]:
    """Return the cases that vLLM refuses itself before the library of ``backend`` sees them."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    module, name = VLLM_CHECKS[backend]
    check = getattr(importlib.import_module(f"vllm.v1.structured_output.{module}"), name)

    def refuses(**given: Any) -> bool:
        try:
            check(SamplingParams(structured_outputs=StructuredOutputsParams(**given)))
        except Exception:
            return True
        return False

    return {
        "schema": [case.name for case in SCHEMAS if refuses(json=json.dumps(case.given))],
        "regex": [case.name for case in REGEXES if refuses(regex=case.given)],
    }


def measure(parts: Iterable[str]) -> dict[str, Any]:
    """Return the columns of installed libraries, by name and version, and of vLLM's own checks."""
    found: dict[str, Any] = {}
    for part in parts:
        if part in LIBRARIES:
            found[f"{part} {version(part)}"] = cells_of(part)
        else:
            import vllm

            columns = {f"vLLM {vllm.__version__}, {name}": name for name in VLLM_CHECKS}
            found |= {column: vllm_refuses(name) for column, name in columns.items()}
    return found


def table(cells: dict[str, Any]) -> str:
    """Return the docs' tables: a row for each case, a column for each library and version."""
    lines = []
    for group, title in (("schema", "JSON Schema"), ("regex", "Regex (the whole text)")):
        columns = [name for name in cells if not name.startswith("vLLM")]
        lines += [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name in next(iter(cells.values()))[group]:
            row = [_cell(cells, column, group, name) for column in columns]
            lines.append(f"| {_code(name)} | {' | '.join(row)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


_BACKENDS = {
    "xgrammar": "xgrammar",
    "llguidance": "guidance",
    "outlines_core": "outlines",
    "lm-format-enforcer": "lm-format-enforcer",
}


def _cell(cells: dict[str, Any], column: str, group: str, name: str) -> str:
    kind, _, details = cells[column][group][name].partition(": ")
    backend = _BACKENDS[column.split()[0]]
    newest = [c for c in cells if c.startswith("vLLM") and c.endswith(f", {backend}")][-1:]
    shown = kind + (f" ({_code(details)})" if details else "")
    if kind != "refused" and any(name in cells[column_][group] for column_ in newest):
        shown += "; vLLM refuses it"
    return str(shown)


def _code(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("|", "\\|")
    return f"`{shown}`" if "`" not in shown else shown


def update_docs() -> None:
    """Write the table of the file into the docs."""
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    cells = json.loads(CELLS.read_text(encoding="utf-8"))
    DOCS.write_text(f"{before}{BEGIN}\n\n{table(cells)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Print the cells, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = (*LIBRARIES, "vllm")
    parser.add_argument("--part", action="append", choices=parts, help="only this one (repeatable)")
    parser.add_argument("--update", action="store_true", help=f"write the columns into {CELLS}")
    parser.add_argument("--docs", action="store_true", help=f"write the file into {DOCS}")
    args = parser.parse_args()
    if args.docs:
        update_docs()
        return
    found = measure(args.part or parts)
    if args.update:
        known = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else {}
        columns = {**known, **found}
        found = {name: columns[name] for name in sorted(columns, key=_order)}
        CELLS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        print(json.dumps(found, indent=1, ensure_ascii=False))


def _order(column: str) -> tuple[int, str]:
    return [*LIBRARIES, "vLLM"].index(column.split()[0]), column


if __name__ == "__main__":
    main()

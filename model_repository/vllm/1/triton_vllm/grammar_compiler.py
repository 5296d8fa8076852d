"""The process in which grammars are compiled on trial: the one that may be killed for it."""

from __future__ import annotations

import json
import os
import resource
from multiprocessing.connection import Connection

_MEMORY = 8 << 30  # bytes of address space: torch's libraries, which xgrammar loads, take half


def run(connection: Connection, tokenizer: str) -> None:
    """Compile what comes, (kind, text), and answer each with None, until the other end closes.

    ``tokenizer`` is xgrammar's ``TokenizerInfo`` as JSON. What xgrammar refuses is answered, too:
    vLLM says it better, or has another backend for it.
    """
    os.nice(5)
    import xgrammar

    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.deserialize_json(tokenizer), max_threads=8, cache_enabled=False
    )
    compile_as = {
        "json": compiler.compile_json_schema,
        "regex": compiler.compile_regex,
        "grammar": compiler.compile_grammar,
        "structural_tag": compiler.compile_structural_tag,
    }
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    connection.send(None)  # ready
    while True:
        try:
            kind, text = connection.recv()
        except EOFError:
            return
        try:
            compile_as[kind](text)
        except MemoryError:
            os._exit(1)
        except Exception as error:
            del error
        connection.send(None)


def choices_as_grammar(choices: list[str]) -> str:
    """Return a grammar of the same size and shape as the one that vLLM makes of choices."""
    return "root ::= " + " | ".join(json.dumps(choice) for choice in choices)

"""The process in which grammars are compiled on trial: the one that may be killed for it."""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOO_MUCH_MEMORY = "takes too much memory to compile"
# xgrammar refuses a grammar with a line of its source, or of the grammar. What else C++ throws, as
# for want of memory or of a thread, comes as a RuntimeError, too: "std::bad_alloc" and no more.
_REFUSAL = re.compile(r"\.cc:\d+: |[Ee]rror ")
_NONSENSE = (UnicodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError)


def run(connection: Connection, tokenizer: str, memory: int) -> None:
    """Compile what comes, (kind, text), until the other end closes.

    Each is answered with what is wrong, "" for nothing. That is said of a grammar that xgrammar
    refuses, too: vLLM says it better, or has another backend for it. ``tokenizer`` is xgrammar's
    ``TokenizerInfo`` as JSON, ``memory`` how many bytes of address space compiling may add.
    """
    os.nice(5)
    import xgrammar

    compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.deserialize_json(tokenizer), max_threads=8, cache_enabled=False
    )
    ways = _ways(xgrammar, compiler)
    _limit_memory(memory)
    connection.send("")  # ready
    while True:
        try:
            kind, text = connection.recv()
        except EOFError:
            return
        connection.send(_try_all(ways[kind], text))


def _ways(xgrammar: Any, compiler: Any) -> dict[str, list[Callable[[str], object]]]:
    """Return how vLLM may compile each kind of grammar: nothing may pass it by being another."""

    def compile_structural_tag(text: str) -> None:
        given = json.loads(text)
        if "structures" not in given:
            compiler.compile_structural_tag(text)
            return
        items = [  # the older form
            xgrammar.StructuralTagItem(
                begin=tag["begin"], schema=json.dumps(tag["schema"]), end=tag["end"]
            )
            for tag in given["structures"]
        ]
        compiler.compile_structural_tag(items, given["triggers"])

    grammars = [compiler.compile_grammar]
    if hasattr(compiler, "compile_lark"):  # vLLM 0.32 takes Lark's syntax to it
        grammars.append(compiler.compile_lark)
    return {
        "json": [compiler.compile_json_schema],
        "regex": [compiler.compile_regex],
        "grammar": grammars,
        "structural_tag": [compile_structural_tag],
    }


def _try_all(ways: list[Callable[[str], object]], text: str) -> str:
    for compile_as in ways:
        try:
            compile_as(text)
        except Exception as error:
            if wrong := what_is_wrong(error):
                return wrong
    return ""


def what_is_wrong(error: Exception) -> str:
    """Return what to say of a grammar that did not compile, "" if xgrammar has refused it."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "std::bad_a" in said:  # bad_alloc, bad_array_new_length
        return TOO_MUCH_MEMORY
    if isinstance(error, _NONSENSE) or _REFUSAL.search(said):
        return ""
    return f"cannot be compiled: {said[:200] or type(error).__name__}"


def _limit_memory(more: int) -> None:
    """Let the process take ``more`` bytes of address space than it has, torch's and its own."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def choices_as_grammar(choices: list[str]) -> str:
    """Return a grammar of the same size and shape as the one that vLLM makes of choices."""
    return "root ::= " + " | ".join(json.dumps(choice) for choice in choices)

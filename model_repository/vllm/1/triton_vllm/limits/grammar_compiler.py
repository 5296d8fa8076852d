"""What the sandbox does with a grammar: it compiles it, as vLLM would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from triton_vllm.limits.sandbox import TOO_MUCH_MEMORY, JobError

# xgrammar's own refusals name a line of its source or of the grammar. Other C++ errors, such as too
# little memory, are bare RuntimeErrors: "std::bad_alloc" and no more.
_REFUSAL = re.compile(r"\.cc:\d+: |[Ee]rror ")
_NONSENSE = (UnicodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError)


def prepare(tokenizer: str) -> Callable[[tuple[str, str]], None]:
    """Return the function that compiles a grammar, given its kind and its text.

    The function raises JobError if compiling fails for another reason than a refusal, such as
    memory. It returns for a grammar that xgrammar refuses: vLLM words the refusal. ``tokenizer``
    is xgrammar's ``TokenizerInfo`` as JSON.
    """
    import xgrammar

    info = xgrammar.TokenizerInfo.deserialize_json(tokenizer)
    compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=False)
    functions: dict[str, list[Callable[[str], object]]] = {  # by which vLLM may compile each kind
        "json": [compiler.compile_json_schema],
        "regex": [compiler.compile_regex],
        "grammar": [compiler.compile_grammar],
        "structural_tag": [lambda text: _compile_structural_tag(xgrammar, compiler, text)],
    }
    if hasattr(compiler, "compile_lark"):  # vLLM 0.32 takes Lark's syntax to it
        functions["grammar"].append(compiler.compile_lark)

    def compile_grammar(job: tuple[str, str]) -> None:
        kind, text = job
        for function in functions[kind]:
            try:
                function(text)
            except Exception as error:
                if failure := failure_of(error):
                    raise JobError(failure) from None

    return compile_grammar


def _compile_structural_tag(xgrammar: Any, compiler: Any, text: str) -> None:
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


def failure_of(error: Exception) -> str:
    """Return why a grammar failed to compile, "" if xgrammar refused it."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "std::bad_a" in text:  # bad_alloc, bad_array_new_length
        return TOO_MUCH_MEMORY
    if isinstance(error, _NONSENSE) or _REFUSAL.search(text):
        return ""
    return text[:200] or type(error).__name__


def choices_as_grammar(choices: list[str]) -> str:
    """Return a grammar of the same size and shape as the one that vLLM makes of choices."""
    return "root ::= " + " | ".join(json.dumps(choice) for choice in choices)

"""What the sandbox does with a finished text: it compares it with the client's JSON schema.

A ``pattern`` of the client's may keep Python's ``re`` busy for long, so this runs in a sandbox.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from triton_vllm.limits.schema_support import escaped

NOT_JSON, TRUNCATED, UNCHECKED = "not_json", "truncated", "unchecked"
MAX_VIOLATIONS = 100
_MAX_MESSAGE = 300  # characters

Violation = dict[str, str]  # path, keyword, message


class Answer(NamedTuple):
    """A text to check. ``truncated``: it was cut before its end, by ``max_tokens`` or in time."""

    schema: str
    text: str
    truncated: bool = False


def violation(keyword: str, message: str, path: str = "") -> Violation:
    """Return a violation as clients see it; ``path`` is a JSON pointer into the answer."""
    return {"path": path, "keyword": keyword, "message": message[:_MAX_MESSAGE]}


def prepare() -> Callable[[Answer], list[Violation]]:
    """Return the function that compares an answer with its schema."""
    import jsonschema  # noqa: F401 (so that the first answer does not wait for it)

    return violations


def violations(answer: Answer) -> list[Violation]:
    """Return what of the whole schema an answer violates, by JSON Schema 2020-12 with formats."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    try:
        value = json.loads(answer.text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        keyword = TRUNCATED if answer.truncated else NOT_JSON
        cut = "the text was cut: " if answer.truncated else ""
        return [violation(keyword, f"{cut}no JSON: {error}")]
    # An empty registry: nothing is fetched for a $ref.
    formats = _formats(Draft202012Validator.FORMAT_CHECKER)
    schema = json.loads(answer.schema)
    validator = Draft202012Validator(schema, registry=Registry(), format_checker=formats)
    try:
        found = itertools.islice(validator.iter_errors(value), MAX_VIOLATIONS)
        return [_violation(error) for error in found]
    except Exception as error:  # a schema that jsonschema cannot use: a $ref that leads nowhere
        return [violation(UNCHECKED, f"{type(error).__name__}: {error}")]


def _violation(error: Any) -> Violation:
    path = "".join(f"/{escaped(str(part))}" for part in error.absolute_path)
    return violation(str(error.validator), error.message, path)


@functools.cache
def _formats(known: Any) -> Any:
    """Return jsonschema's formats, and those for which it would need more packages."""
    checker = copy.copy(known)
    checker.checkers = dict(known.checkers)
    for name, matches in _MORE_FORMATS.items():
        if name not in checker.checkers:
            checker.checks(name, raises=ValueError)(
                lambda value, matches=matches: not isinstance(value, str) or bool(matches(value))
            )
    return checker


_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DURATION = r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)"
_NO_URI = re.compile(r'[\s<>"{}|\\^`]')
_MORE_FORMATS: dict[str, Callable[[str], object]] = {  # they may raise ValueError
    "date-time": lambda text: (
        re.match(r"\d{4}-\d\d-\d\d[Tt ]", text) and datetime.fromisoformat(text).tzinfo
    ),
    "time": lambda text: datetime.fromisoformat(f"2000-01-01T{text}").tzinfo,
    "duration": re.compile(_DURATION).fullmatch,
    "hostname": re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*").fullmatch,
    "uri": lambda text: urlsplit(text).scheme and not _NO_URI.search(text),
    "uri-reference": lambda text: urlsplit(text) and not _NO_URI.search(text),
    "json-pointer": re.compile(r"(/([^~/]|~[01])*)*").fullmatch,
}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")

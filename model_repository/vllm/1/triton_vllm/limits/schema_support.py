"""Which keywords of a JSON schema a structured-output library ignores, or narrows, in silence.

The facts are the cells of docs/structured-outputs.json, measured on the libraries; a unit test
compares the two. A keyword counts as narrowed if a value that it allows cannot be generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
KNOWN = ("xgrammar", "guidance")  # vLLM's names of the libraries whose departures are known


class Departure(NamedTuple):
    """A keyword in a schema that a library does not enforce as JSON Schema defines it."""

    pointer: str  # the keyword's JSON pointer (RFC 6901)
    keyword: str
    effect: str

    def __str__(self) -> str:
        """Return the keyword, its place and what becomes of it."""
        return f'"{self.keyword}" at "{self.pointer}" ({self.effect})'


# Keywords whose values are schemas: one, an array of them, or an object of them.
_ONE = {"not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames"}
_ONE |= {"unevaluatedItems", "unevaluatedProperties"}
_ARRAY = {"allOf", "anyOf", "oneOf", "prefixItems"}
_OBJECT = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
# Beside these, xgrammar drops every other assertion.
_ALONE = ("$ref", "anyOf", "allOf", "oneOf", "enum", "const")
_NO_ASSERTIONS = {"$defs", "definitions", "$schema", "$id", "$comment", "$anchor", "title"}
_NO_ASSERTIONS |= {"description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
_NO_ASSERTIONS |= {"discriminator", "contentEncoding", "contentMediaType"}
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_IGNORED = "ignored"
_XGRAMMAR = dict.fromkeys(("$dynamicRef", "not", "if", "then", "else", "multipleOf"), _IGNORED)
_XGRAMMAR |= dict.fromkeys(("dependentSchemas", "dependentRequired"), _IGNORED)
_XGRAMMAR |= dict.fromkeys(("uniqueItems", "minProperties"), _IGNORED)
_XGRAMMAR |= {
    "oneOf": "taken as anyOf",
    "contains": "taken for items",
    "minLength": "narrowed: no escapes in the string",
    "maxLength": "narrowed: no escapes in the string",
    "maxProperties": "narrowed: no properties",
    "patternProperties": "narrowed: matches the whole name",
}
_XGRAMMAR_FORMATS = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6"}
_XGRAMMAR_FORMATS |= {"uri", "uri-reference", "uri-template", "uuid", "json-pointer"}
_XGRAMMAR_FORMATS |= {"relative-json-pointer"}
_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "boolean": (bool,), "object": (dict,)}
_TYPES |= {"array": (list,), "null": (type(None),), "integer": (int,), "number": (int, float)}
# What of a pattern may need an escape in JSON, or match what needs one.
_MAY_NEED_ESCAPE = re.compile(r'["\x00-\x1f]|\\[^dw./\-+*?()\[\]{}|^$]|\[\^|(?<!\\)\.')


def departures(schema: Any, library: str) -> list[Departure]:
    """Return what a library of ``KNOWN`` does not enforce of a schema.

    llguidance enforces what it takes, and refuses the rest.
    """
    if library != "xgrammar":
        return []
    return [
        Departure(f"{at}/{escaped(keyword)}", keyword, effect)
        for node, at in walk(schema)
        for keyword, effect in _xgrammar(node)
    ]


def walk(schema: Any) -> Iterator[tuple[Schema, str]]:
    """Yield each schema that is an object within a schema, and its JSON pointer."""
    pending = [(schema, "")]
    while pending:
        node, at = pending.pop()
        if not isinstance(node, dict):
            continue
        yield node, at
        for keyword, value in node.items():
            below = f"{at}/{escaped(keyword)}"
            if keyword in _ONE:
                pending.append((value, below))
            elif keyword in _ARRAY and isinstance(value, list):
                pending += [(each, f"{below}/{i}") for i, each in enumerate(value)]
            elif keyword in _OBJECT and isinstance(value, dict):
                pending += [(each, f"{below}/{escaped(name)}") for name, each in value.items()]


def escaped(name: str) -> str:
    """Return a key as it is written in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _xgrammar(node: Schema) -> Iterator[tuple[str, str]]:
    """Yield the keywords of a schema that xgrammar does not enforce, and what becomes of each."""
    yield from ((keyword, effect) for keyword, effect in _XGRAMMAR.items() if keyword in node)
    yield from _beside(node)
    if node.get("type") != "integer":
        effect = "narrowed: at most six decimals" if "type" in node else "ignored without type"
        yield from ((bound, effect) for bound in _BOUNDS if bound in node)
    target, choices, value = node.get("$ref", "#"), node.get("allOf"), node.get("const")
    if isinstance(target, str) and target != "#" and not target.startswith("#/"):
        yield "$ref", "ignored: not a JSON pointer"
    if isinstance(choices, list) and len(choices) > 1:
        yield "allOf", _IGNORED
    if "format" in node and node["format"] not in _XGRAMMAR_FORMATS:
        yield "format", _IGNORED
    if isinstance(value, float) and not value.is_integer():
        yield "const", "written with other digits"
    if "prefixItems" in node and "items" not in node and "unevaluatedItems" not in node:
        yield "prefixItems", "narrowed: no further items"
    required, known = node.get("required"), node.get("properties") or {}
    for name in required if isinstance(required, list) else []:
        if name not in known:
            yield "required", f'"{name}" is not in properties: ignored'
    if isinstance(node.get("pattern"), str):
        yield from (("pattern", effect) for effect in _pattern(node))


def _pattern(node: Schema) -> Iterator[str]:
    pattern = node["pattern"]
    if not (pattern.startswith("^") and pattern.endswith("$")):
        yield "narrowed: matches the whole string"
    if _MAY_NEED_ESCAPE.search(pattern):
        yield "written unescaped: the text may be no JSON"
    if "minLength" in node or "maxLength" in node:
        yield "length bounds beside it are ignored"


def _beside(node: Schema) -> Iterator[tuple[str, str]]:
    """Yield the assertions that stand beside a keyword that is taken alone."""
    alone = next((keyword for keyword in _ALONE if keyword in node), None)
    for keyword in node:
        if alone is None or keyword == alone or keyword in _NO_ASSERTIONS:
            continue
        if keyword != "type" or not _types_fit(node, alone):
            yield keyword, f"ignored beside {alone}"


def _types_fit(node: Schema, alone: str) -> bool:
    """Return whether ``type`` forbids nothing that the keyword beside it allows."""
    given = node["type"] if isinstance(node["type"], list) else [node["type"]]
    value = node[alone]
    if alone in ("enum", "const"):
        values = value if alone == "enum" and isinstance(value, list) else [value]
        types = tuple(kind for name in given for kind in _TYPES.get(str(name), ()))
        return all(isinstance(each, types) for each in values)
    branches = value if isinstance(value, list) else []
    return bool(branches) and all(
        isinstance(branch, dict) and _implied_type(branch) in given for branch in branches
    )


def _implied_type(schema: Schema) -> Any:
    """Return the type of a schema, which is an object for a library if it has properties."""
    return schema.get("type", "object" if "properties" in schema else None)

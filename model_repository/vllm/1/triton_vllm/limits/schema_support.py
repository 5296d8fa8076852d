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
    """A keyword in a schema that a library does not enforce as JSON Schema defines it.

    ``pointer`` is the JSON pointer of the keyword (RFC 6901).
    """

    pointer: str
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
# What of a pattern may need an escape in JSON, or match what needs one.
_MAY_NEED_ESCAPE = re.compile(r'["\x00-\x1f]|\\[^dw./\-+*?()\[\]{}|^$]|\[\^|(?<!\\)\.')


def departures(schema: Any, library: str) -> list[Departure]:
    """Return what a library of ``KNOWN`` does not enforce of a schema.

    llguidance enforces what it takes, and refuses the rest.
    """
    if library != "xgrammar":
        return []
    return [departure for node, at in walk(schema) for departure in _xgrammar(node, at)]


def walk(schema: Any, pointer: str = "") -> Iterator[tuple[Schema, str]]:
    """Yield each schema that is an object within a schema, and its JSON pointer."""
    pending = [(schema, pointer)]
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


def _found(node: Schema, at: str, effects: Mapping[str, str]) -> Iterator[Departure]:
    for keyword, effect in effects.items():
        if keyword in node:
            yield Departure(f"{at}/{keyword}", keyword, effect)


def _beside(node: Schema, at: str) -> Iterator[Departure]:
    """Yield the assertions that stand beside a keyword that is taken alone."""
    alone = next((keyword for keyword in _ALONE if keyword in node), None)
    for keyword in node:
        if alone is None or keyword == alone or keyword in _NO_ASSERTIONS:
            continue
        if keyword != "type" or not _types_fit(node, alone):
            yield Departure(f"{at}/{escaped(keyword)}", keyword, f"ignored beside {alone}")


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


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}
_TYPES |= {"null": (type(None),), "integer": (int,), "number": (int, float)}


def _implied_type(schema: Schema) -> Any:
    """Return the type of a schema, which is an object for a library if it has properties."""
    return schema.get("type", "object" if "properties" in schema else None)


_XGRAMMAR = {
    "$dynamicRef": _IGNORED,
    "not": _IGNORED,
    "if": _IGNORED,
    "then": _IGNORED,
    "else": _IGNORED,
    "dependentSchemas": _IGNORED,
    "dependentRequired": _IGNORED,
    "uniqueItems": _IGNORED,
    "multipleOf": _IGNORED,
    "oneOf": "taken as anyOf",
    "contains": "taken for items",
    "minLength": "narrowed: no escapes in the string",
    "maxLength": "narrowed: no escapes in the string",
    "minProperties": _IGNORED,
    "maxProperties": "narrowed: no properties",
}
_XGRAMMAR_FORMATS = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6"}
_XGRAMMAR_FORMATS |= {"uri", "uri-reference", "uri-template", "uuid", "json-pointer"}
_XGRAMMAR_FORMATS |= {"relative-json-pointer"}


def _xgrammar(node: Schema, at: str) -> Iterator[Departure]:
    yield from _found(node, at, _XGRAMMAR)
    yield from _beside(node, at)
    yield from _named_ref(node, at)
    if "type" not in node:
        yield from _found(node, at, dict.fromkeys(_BOUNDS, "ignored without type"))
    elif node["type"] != "integer":
        effect = "narrowed: at most six decimals"
        yield from _found(node, at, dict.fromkeys(_BOUNDS, effect))
    if isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1:
        yield Departure(f"{at}/allOf", "allOf", _IGNORED)
    if "format" in node and node["format"] not in _XGRAMMAR_FORMATS:
        yield Departure(f"{at}/format", "format", _IGNORED)
    values = [node["const"]] if "const" in node else []
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        yield Departure(f"{at}/const", "const", "written with other digits")
    if "prefixItems" in node and "items" not in node and "unevaluatedItems" not in node:
        yield Departure(f"{at}/prefixItems", "prefixItems", "narrowed: no further items")
    if "patternProperties" in node:
        effect = "narrowed: matches the whole name"
        yield Departure(f"{at}/patternProperties", "patternProperties", effect)
    yield from _required(node, at)
    yield from _pattern(node, at)


def _named_ref(node: Schema, at: str) -> Iterator[Departure]:
    target = node.get("$ref")
    if isinstance(target, str) and target != "#" and not target.startswith("#/"):
        yield Departure(f"{at}/$ref", "$ref", "ignored: not a JSON pointer")


def _required(node: Schema, at: str) -> Iterator[Departure]:
    required, known = node.get("required"), node.get("properties") or {}
    for name in required if isinstance(required, list) else []:
        if name not in known:
            effect = f'"{name}" is not in properties: ignored'
            yield Departure(f"{at}/required", "required", effect)


def _pattern(node: Schema, at: str) -> Iterator[Departure]:
    pattern = node.get("pattern")
    if not isinstance(pattern, str):
        return
    if not (pattern.startswith("^") and pattern.endswith("$")):
        yield Departure(f"{at}/pattern", "pattern", "narrowed: matches the whole string")
    if _MAY_NEED_ESCAPE.search(pattern):
        yield Departure(f"{at}/pattern", "pattern", "written unescaped: the text may be no JSON")
    if "minLength" in node or "maxLength" in node:
        yield Departure(f"{at}/pattern", "pattern", "length bounds beside it are ignored")

"""Concrete strings for each keyword of JSON Schema 2020-12 and each construct of regexes.

Of each case: a name, what it compiles, texts that it allows and texts that it forbids, by the
standard. tests/unit/test_structured_outputs_table.py compares the schemas' texts with jsonschema.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A schema (or a regex), and whole texts that it allows and forbids."""

    name: str
    given: Any
    allowed: tuple[str, ...]
    forbidden: tuple[str, ...]


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_INT = {"type": "integer"}
_STR = {"type": "string"}

SCHEMAS = (
    # The core vocabulary.
    Case("true", True, ('{"a": 1}', "1"), ()),
    Case("false", _object(a=False), ("{}",), ('{"a": 1}',)),
    Case("$ref to $defs", {"$ref": "#/$defs/i", "$defs": {"i": _INT}}, ("1",), ('"a"',)),
    Case(
        "$ref, recursive",
        {**_object(a={"$ref": "#"}), "additionalProperties": False},
        ("{}", '{"a": {"a": {}}}'),
        ('{"a": {"a": 1}}',),
    ),
    Case(
        "$ref beside other keywords",
        {"$ref": "#/$defs/i", "minimum": 5, "$defs": {"i": _INT}},
        ("7",),
        ("3",),
    ),
    Case("$anchor", {"$ref": "#i", "$defs": {"i": {"$anchor": "i", **_INT}}}, ("1",), ('"a"',)),
    Case(
        "$dynamicRef",
        {"$dynamicRef": "#i", "$defs": {"i": {"$dynamicAnchor": "i", **_INT}}},
        ("1",),
        ('"a"',),
    ),
    # Applicators.
    Case("allOf, one schema", {"allOf": [_INT]}, ("1",), ('"a"',)),
    Case(
        "allOf, several schemas",
        {"allOf": [{"type": "integer", "minimum": 2}, {"type": "integer", "maximum": 5}]},
        ("3",),
        ("1", "9"),
    ),
    Case("allOf beside other keywords", {"allOf": [_INT], "minimum": 5}, ("7",), ("3",)),
    Case("anyOf", {"anyOf": [_INT, _STR]}, ("1", '"a"'), ("null",)),
    Case(
        "anyOf beside other keywords",
        {"type": "integer", "anyOf": [{"minimum": 5}, {"maximum": 1}], "maximum": 9},
        ("0", "7"),
        ("3", "12"),
    ),
    Case("oneOf, disjoint", {"oneOf": [_INT, _STR]}, ("1", '"a"'), ("null",)),
    Case(
        "oneOf, overlapping",
        {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]},
        ("-1", "7"),
        ("3",),
    ),
    Case("not", {"not": {"type": "string"}}, ("1",), ('"a"',)),
    Case(
        "if, then, else",
        {"type": "integer", "if": {"minimum": 10}, "then": {"maximum": 20}, "else": {"minimum": 0}},
        ("5", "15"),
        ("-1", "30"),
    ),
    Case(
        "dependentSchemas",
        {
            **_object(a=_INT, b=_INT),
            "dependentSchemas": {"a": {"properties": {"b": {"minimum": 5}}}},
        },
        ('{"a": 1, "b": 7}', '{"b": 1}'),
        ('{"a": 1, "b": 1}',),
    ),
    Case(
        "properties",
        {**_object(a=_INT), "required": ["a"]},
        ('{"a": 1}', '{"a":1}'),
        ('{"a": "x"}',),
    ),
    Case(
        "properties in another order",
        {**_object(a=_INT, b=_INT), "required": ["a", "b"]},
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
        (),
    ),
    Case("properties and others", _object(a=_INT), ('{"a": 1, "x": "y"}',), ()),
    Case(
        "patternProperties",
        {"type": "object", "patternProperties": {"^x": _INT}, "additionalProperties": False},
        ('{"x1": 1}',),
        ('{"x1": "a"}', '{"y": 1}'),
    ),
    Case(
        "patternProperties, not anchored",
        {"type": "object", "patternProperties": {"x": _INT}, "additionalProperties": False},
        ('{"x": 1}', '{"axb": 1}'),
        ('{"axb": "a"}',),
    ),
    Case(
        "additionalProperties: false",
        {**_object(a=_INT), "additionalProperties": False},
        ('{"a": 1}', "{}"),
        ('{"b": 1}',),
    ),
    Case(
        "additionalProperties, a schema",
        {**_object(a=_INT), "additionalProperties": _STR},
        ('{"a": 1, "b": "x"}',),
        ('{"a": 1, "b": 2}',),
    ),
    Case(
        "propertyNames",
        {"type": "object", "propertyNames": {"pattern": "^[a-z]$"}},
        ('{"a": 1}',),
        ('{"A": 1}',),
    ),
    Case("items", {"type": "array", "items": _INT}, ("[]", "[1, 2]"), ('["a"]',)),
    Case(
        "prefixItems",
        {"type": "array", "prefixItems": [_INT, _STR]},
        ('[1, "a"]', "[1]", '[1, "a", null]'),
        ('["a", 1]',),
    ),
    Case(
        "prefixItems, items: false",
        {"type": "array", "prefixItems": [_INT], "items": False},
        ("[1]", "[]"),
        ("[1, 2]",),
    ),
    Case("contains", {"type": "array", "contains": _INT}, ('["a", 1]',), ('["a"]', "[]")),
    Case(
        "minContains, maxContains",
        {"type": "array", "contains": _INT, "minContains": 2, "maxContains": 2},
        ("[1, 2]",),
        ("[1]", "[1, 2, 3]"),
    ),
    Case(
        "unevaluatedItems",
        {"type": "array", "prefixItems": [_INT], "unevaluatedItems": False},
        ("[1]",),
        ("[1, 2]",),
    ),
    Case(
        "unevaluatedProperties",
        {**_object(a=_INT), "unevaluatedProperties": False},
        ('{"a": 1}',),
        ('{"b": 1}',),
    ),
    # Validation.
    Case("type", {"type": "integer"}, ("1", "-3"), ("1.5", '"a"')),
    Case("type, an integer as 1.0", {"type": "integer"}, ("1.0", "1"), ()),
    Case("type, a number with an exponent", {"type": "number"}, ("1e3", "1.5", "2E-7"), ()),
    Case("type, several", {"type": ["integer", "null"]}, ("1", "null"), ('"a"',)),
    Case("enum", {"enum": ["a", 1, None]}, ('"a"', "1", "null"), ('"b"', "2")),
    Case("enum beside other keywords", {"enum": ["a", 1], "type": "string"}, ('"a"',), ("1",)),
    Case("const", {"const": "a"}, ('"a"',), ('"b"',)),
    Case("const 0.1", {"const": 0.1}, ("0.1",), ("0.2",)),
    Case("const, an object", {"const": {"a": [1]}}, ('{"a": [1]}', '{"a":[1]}'), ("{}",)),
    Case("multipleOf, integer", {"type": "integer", "multipleOf": 3}, ("9",), ("10",)),
    Case("multipleOf, number", {"type": "number", "multipleOf": 0.5}, ("1.5",), ("1.3",)),
    Case(
        "minimum, maximum: integer",
        {"type": "integer", "minimum": -3, "maximum": 12},
        ("-3", "0", "12"),
        ("-4", "13"),
    ),
    Case(
        "exclusiveMinimum, exclusiveMaximum: integer",
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 5},
        ("2", "4"),
        ("1", "5"),
    ),
    Case(
        "minimum, maximum: number",
        {"type": "number", "minimum": 0.5, "maximum": 2},
        ("0.5", "1.25"),
        ("0.4", "2.5"),
    ),
    Case(
        "minimum: number, an exponent",
        {"type": "number", "minimum": 0.5},
        ("1e3", "2.5e0"),
        ("1e-3",),
    ),
    Case(
        "minimum: number, seven decimals",
        {"type": "number", "minimum": 0.5},
        ("0.7512345",),
        ("0.4999999",),
    ),
    Case(
        "exclusiveMinimum: number",
        {"type": "number", "exclusiveMinimum": 0.5},
        ("0.75",),
        ("0.5", "0.25"),
    ),
    Case("minLength", {"type": "string", "minLength": 2}, ('"ab"',), ('"a"',)),
    Case("maxLength", {"type": "string", "maxLength": 2}, ('"ab"',), ('"abc"',)),
    Case(
        "minLength, maxLength: escapes",
        {"type": "string", "minLength": 1, "maxLength": 2},
        ('"\\n"', '"\\"\\\\"', '"\\u00e9"'),
        (),
    ),
    Case("maxLength: characters", {"type": "string", "maxLength": 1}, ('"é"', '"😀"'), ('"éé"',)),
    Case("pattern, anchored", {"type": "string", "pattern": "^ab+$"}, ('"abb"',), ('"xab"',)),
    Case("pattern, not anchored", {"type": "string", "pattern": "b"}, ('"abc"', '"b"'), ('"c"',)),
    Case(
        "pattern, quotes",
        {"type": "string", "pattern": '^a"b$'},
        ('"a\\"b"',),
        ('"a"b"',),
    ),
    Case(
        "pattern, a newline",
        {"type": "string", "pattern": "^a\\nb$"},
        ('"a\\nb"',),
        ('"a\nb"',),
    ),
    Case(
        "pattern and maxLength",
        {"type": "string", "pattern": "^a+$", "maxLength": 2},
        ('"aa"',),
        ('"aaa"', '"b"'),
    ),
    Case("minItems", {"type": "array", "items": _INT, "minItems": 2}, ("[1, 2]",), ("[1]",)),
    Case("maxItems", {"type": "array", "items": _INT, "maxItems": 1}, ("[1]",), ("[1, 2]",)),
    Case(
        "uniqueItems",
        {"type": "array", "items": _INT, "uniqueItems": True},
        ("[1, 2]",),
        ("[1, 1]",),
    ),
    Case(
        "minProperties",
        {"type": "object", "minProperties": 1},
        ('{"a": 1}',),
        ("{}",),
    ),
    Case(
        "maxProperties",
        {"type": "object", "maxProperties": 1},
        ('{"a": 1}',),
        ('{"a": 1, "b": 2}',),
    ),
    Case("required", {**_object(a=_INT), "required": ["a"]}, ('{"a": 1}',), ("{}",)),
    Case(
        "required, not in properties",
        {**_object(a=_INT), "required": ["b"]},
        ('{"b": 1}',),
        ("{}", '{"a": 1}'),
    ),
    Case(
        "dependentRequired",
        {**_object(a=_INT, b=_INT), "dependentRequired": {"a": ["b"]}},
        ('{"a": 1, "b": 2}', '{"b": 2}'),
        ('{"a": 1}',),
    ),
    Case(
        "properties without type", {"properties": {"a": _INT}}, ("1", '{"a": 1}'), ('{"a": "x"}',)
    ),
    Case("minimum without type", {"minimum": 5}, ('"a"', "7"), ("3",)),
    # Formats.
    *(
        Case(f"format: {name}", {"type": "string", "format": name}, (right,), (wrong,))
        for name, right, wrong in (
            ("date-time", '"2026-11-28T10:00:00Z"', '"tomorrow"'),
            ("date", '"2026-11-28"', '"28.11.2026"'),
            ("time", '"10:00:00Z"', '"ten"'),
            ("duration", '"P3DT4H"', '"3 days"'),
            ("email", '"a@example.org"', '"a"'),
            ("hostname", '"example.org"', '"-a-"'),
            ("ipv4", '"127.0.0.1"', '"127.0.0"'),
            ("ipv6", '"::1"', '"1"'),
            ("uri", '"https://example.org/a"', '"a b"'),
            ("uri-reference", '"/a"', '"a b"'),
            ("uuid", '"123e4567-e89b-12d3-a456-426614174000"', '"123"'),
            ("json-pointer", '"/a/b"', '"a"'),
            ("regex", '"a+"', '"["'),
        )
    ),
)

REGEXES = (
    Case("literals, |, (...)", "(ab|c)d", ("abd", "cd"), ("ad",)),
    Case("(?:...)", "(?:ab)+", ("abab",), ("aba",)),
    Case("(?P<name>...)", "(?P<x>ab)c", ("abc",), ("ab",)),
    Case("(?<name>...)", "(?<x>ab)c", ("abc",), ("ab",)),
    Case("[abc], [a-z]", "[abx-z]+", ("abyz",), ("c",)),
    Case("[^abc]", "[^abc]", ("d", "é"), ("a",)),
    Case(".", "a.c", ("abc", "aéc"), ("ac",)),
    Case(". and a newline", "a.c", (), ("a\nc",)),
    Case("*, +, ?", "a*b+c?", ("b", "aabbc"), ("ac",)),
    Case("{m}, {m,}, {m,n}", "a{2}b{1,}c{0,1}", ("aab", "aabbc"), ("ab",)),
    Case("lazy: *?, +?, ??", "a*?b+?c??", ("b", "aabbc"), ("ac",)),
    Case("^, $ at the ends", "^ab$", ("ab",), ("xab", "abx")),
    Case("\\d, \\w, \\s", "\\d\\w\\s", ("1a ", "0_\t"), ("aa ",)),
    Case("\\D, \\W, \\S", "\\D\\W\\S", ("a-b",), ("1-b",)),
    Case("\\d in a class", "[\\d-]+", ("1-2",), ("a",)),
    Case("\\w, é", "\\w", ("a",), ("-",)),
    Case("\\n, \\t, \\r", "a\\nb\\tc\\r", ("a\nb\tc\r",), ("anbtcr",)),
    Case("\\., \\*, \\\\", "\\.\\*\\\\", (".*\\",), ("a",)),
    Case("\\x41", "\\x41", ("A",), ("x41",)),
    Case("\\u0041", "\\u0041", ("A",), ("u0041",)),
    Case("\\p{L}", "\\p{L}", ("a", "é"), ("1", "p{L}")),
    Case("\\A", "\\Aab", ("ab",), ("Aab",)),
    Case("\\Z", "ab\\Z", ("ab",), ("abZ",)),
    Case("\\z", "ab\\z", ("ab",), ("abz",)),
    Case("\\b", "\\bab\\b", ("ab",), ("bab",)),
    Case("\\B", "a\\Bb", ("ab",), ("aBb",)),
    Case("(?=...)", "(?=a)\\w", ("a",), ("b",)),
    Case("(?!...)", "(?!a)\\w", ("b",), ("a",)),
    Case("(?<=...)", "a(?<=a)b", ("ab",), ("b",)),
    Case("\\1", "(a|b)\\1", ("aa", "bb"), ("ab",)),
    Case("(?i)", "(?i)ab", ("AB", "ab"), ("xx",)),
    Case("possessive: a++", "a++b", ("aab",), ("b",)),
)

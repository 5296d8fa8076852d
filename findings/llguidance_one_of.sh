#!/usr/bin/env bash
# llguidance 1.7.6: `oneOf` compiles only if its schemas exclude each other by type or constant.
#
# Two schemas of integers whose ranges overlap are valid JSON Schema. llguidance refuses the whole
# schema, as it refuses `not`, `if` and `uniqueItems`; xgrammar 0.2.8 takes `oneOf` for `anyOf`. So
# a schema that one library serves is an error with the other.
#
# Output seen on 2026-11-28:
#   integer or string: compiles
#   overlapping integers: refused
#   not: refused
#
# Installs llguidance 1.7.6 (15 MB) into a temporary folder. Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder" llguidance==1.7.6
PYTHONPATH="$folder" python3 - <<'EOP'
import json
import sys

from llguidance import LLMatcher

integer = {"type": "integer"}
cases = [
    ("integer or string", {"oneOf": [integer, {"type": "string"}]}, "compiles"),
    (
        "overlapping integers",
        {"oneOf": [{**integer, "minimum": 0}, {**integer, "maximum": 5}]},
        "refused",
    ),
    ("not", {"not": {"type": "string"}}, "refused"),
]
failed = False
for name, schema, expected in cases:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    seen = "refused" if LLMatcher.validate_grammar(grammar) else "compiles"
    failed |= seen != expected
    print(f"{name}: {seen if seen == expected else 'DIFFERENT: ' + seen}")
sys.exit(failed)
EOP

#!/usr/bin/env bash
# xgrammar 0.2.8: keywords of a valid JSON schema that it does not enforce, without an error.
#
# Each schema below forbids the text beside it, and xgrammar's matcher accepts it: `not`, `if`,
# `dependentRequired`, `uniqueItems`, a name in `required` that is not in `properties`, and what
# stands beside `anyOf`, `$ref` and `enum`. A model that is bound to the schema can generate it.
#
# Output seen on 2026-11-28: each line ends with "accepted".
#
# Installs xgrammar 0.2.8 (60 MB) into a temporary folder, without torch and transformers: it imports
# them, and neither compiles nor matches with them. Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet apache-tvm-ffi==0.1.15.post2 pydantic==2.14.4 numpy==2.2.6
"$folder/venv/bin/pip" install --quiet --no-deps xgrammar==0.2.8
"$folder/venv/bin/python" - 2>"$folder/log" <<'EOP' || { cat "$folder/log" >&2; exit 1; }
import json
import sys
from unittest.mock import MagicMock

import tvm_ffi  # before the stand-ins: it looks for torch, too

sys.modules |= dict.fromkeys(("torch", "transformers"), MagicMock())
import xgrammar

END = 256
vocabulary = [bytes([byte]) for byte in range(256)] + [b"<end>"]
info = xgrammar.TokenizerInfo(
    vocabulary, vocab_type=xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[END]
)
compiler = xgrammar.GrammarCompiler(info, max_threads=1)
integer = {"type": "integer"}
two = {"type": "object", "properties": {"a": integer, "b": integer}}
cases = [
    ("not", {"not": {"type": "string"}}, '"a"'),
    ("if", {**integer, "if": {"minimum": 10}, "then": {"maximum": 20}}, "30"),
    ("dependentRequired", {**two, "dependentRequired": {"a": ["b"]}}, '{"a": 1}'),
    ("uniqueItems", {"type": "array", "items": integer, "uniqueItems": True}, "[1, 1]"),
    ("required", {**two, "required": ["c"]}, '{"a": 1}'),
    ("beside anyOf", {"anyOf": [integer, {"type": "null"}], "maximum": 9}, "12"),
    ("beside $ref", {"$ref": "#/$defs/i", "minimum": 5, "$defs": {"i": integer}}, "3"),
    ("beside enum", {"enum": ["a", 1], "type": "string"}, "1"),
]
failed = False
for name, schema, text in cases:
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    accepted = matcher.accept_string(text) and matcher.accept_token(END)
    failed |= not accepted
    print(f"{name}: {text} {'accepted' if accepted else 'DIFFERENT: refused'}")
sys.exit(failed)
EOP

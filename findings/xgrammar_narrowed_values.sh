#!/usr/bin/env bash
# xgrammar 0.2.8: values that a valid JSON schema allows, and that cannot be generated.
#
#   const 0.1           is written 0.10000000000000001, and no other text of the value
#   minimum 0.5         no exponent and at most six decimals
#   maxLength           no escape at all in the string: no quote, no newline
#   pattern ^a"b$       the quote is written unescaped, so the only text accepted is not JSON
#   pattern b           is taken for the whole string; JSON Schema searches
#
# Output seen on 2026-11-28: each line ends with "as expected".
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
string = {"type": "string"}
cases = [  # schema, text that is allowed and refused, text that is accepted
    ({"const": 0.1}, "0.1", "0.10000000000000001"),
    ({"type": "number", "minimum": 0.5}, "1e3", "1000"),
    ({"type": "number", "minimum": 0.5}, "0.7512345", "0.751234"),
    ({**string, "maxLength": 3}, r'"\""', '"a"'),
    ({**string, "maxLength": 3}, r'"\n"', '"a"'),
    ({**string, "pattern": '^a"b$'}, r'"a\"b"', '"a"b"'),
    ({**string, "pattern": "b"}, '"abc"', '"b"'),
]


def accepts(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text) and matcher.accept_token(END)


failed = False
for schema, allowed, accepted in cases:
    expected = not accepts(schema, allowed) and accepts(schema, accepted)
    failed |= not expected
    end = "as expected" if expected else "DIFFERENT"
    print(f"{json.dumps(schema)}: {allowed} refused, {accepted} accepted: {end}")
sys.exit(failed)
EOP

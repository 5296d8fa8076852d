#!/usr/bin/env bash
# xgrammar 0.2.8: an escape of a regex that it does not know stands for its letter.
#
# `\Aab`, `ab\Z` and `ab\z` (start and end of the text in Python, Rust and PCRE) match "Aab", "abZ"
# and "abz", and not "ab". There is a warning on standard error and no error. llguidance 1.7.6
# refuses `\Z` and takes `\A` and `\z` as anchors.
#
# Output seen on 2026-11-28:
#   \Aab: Aab accepted, ab refused
#   ab\Z: abZ accepted, ab refused
#   ab\z: abz accepted, ab refused
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


def word(regex, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_regex(regex))
    accepted = matcher.accept_string(text) and matcher.accept_token(END)
    return f"{text} {'accepted' if accepted else 'refused'}"


failed = False
for regex, letter in ((r"\Aab", "Aab"), (r"ab\Z", "abZ"), (r"ab\z", "abz")):
    line = f"{word(regex, letter)}, {word(regex, 'ab')}"
    different = line != f"{letter} accepted, ab refused"
    failed |= different
    print(f"{regex}: {'DIFFERENT: ' if different else ''}{line}")
sys.exit(failed)
EOP

"""Fuzzes the request decoder, guided by coverage. scripts/fuzz.sh runs it.

Atheris (libFuzzer) makes the bytes. hypothesis turns them into requests by the strategies of
``tests.hostile``, or they go as they are into one of the tensors that hold JSON or a file. The
first argument is the folder of the corpus, the others are libFuzzer's. The first input that breaks
something ends the run with a traceback, and is left in a file crash-….
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import atheris
from hypothesis import given

with atheris.instrument_imports(include=["triton_vllm"]):
    from tests.contract.test_hostile import check
    from triton_vllm.vllm_api import api as vllm_api
    from triton_vllm.vllm_api.parameters import SamplingParser

from tests.hostile import cases, tensors

PARSER = SamplingParser({})
NAMES = [
    *vllm_api.param_types(vllm_api.SamplingParams),
    "timeout_seconds",
    "use_beam_search",
    "lora_name",
]
COMPLETION = {"text_input": b"Hello"}
CHAT = {"messages": b'[{"role": "user", "content": "Hello"}]'}
CHAT_TENSORS = ("messages", "tools", "tool_choice", "chat_template_kwargs")
TENSORS = ("sampling_parameters", "image", *CHAT_TENSORS)
VALUES = [0, 1.5, "a", True, None, ["a"], [1], {"1": 2}, {"regex": "a+"}]


@cases(1)  # of as many as the fuzzer makes
@given(inputs=tensors())
def structured(inputs: dict[str, object]) -> None:
    """Check one request of the strategies."""
    check(PARSER, inputs)


def fuzz(data: bytes) -> None:
    """Check what the fuzzer has made: its first byte says into which tensor the others go."""
    which, given = (data[0] if data else 0) % (len(TENSORS) + 1), data[1:]
    if which == len(TENSORS):
        structured.hypothesis.fuzz_one_input(given)  # type: ignore[attr-defined]
    else:
        name = TENSORS[which]
        check(PARSER, {**(CHAT if name in CHAT_TENSORS else COMPLETION), name: given})


def write_seeds(corpus: Path) -> None:
    """Put there what the fuzzer may begin with: good JSON for each tensor, and noise."""
    noise = random.Random(0)
    seeds = [bytes([len(TENSORS)]) + noise.randbytes(2000) for _ in range(100)]
    for name in NAMES:
        seeds += [b"\0" + json.dumps({name: value}).encode() for value in VALUES]
    for which in range(1, len(TENSORS)):
        seeds += [bytes([which]) + seed for seed in (CHAT["messages"], b'[{"type": "function"}]')]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()

"""vLLM's flags in its texts, as keys."""

from __future__ import annotations

import pytest

from triton_vllm.config.flags import flags_as_keys

KNOWN = {"enforce_eager", "gpu_memory_utilization", "max_logprobs", "pooler_config", "runner"}
KNOWN |= {"enable_auto_tool_choice", "tool_call_parser"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no flag - here, a--b, --", "no flag - here, a--b, --"),
        ("needs --max-logprobs", 'needs "max_logprobs"'),
        ("needs --max_logprobs.", 'needs "max_logprobs".'),
        ("set `--max-logprobs`, please", 'set "max_logprobs", please'),
        ("--max-logprobs=3, not 2", '"max_logprobs": 3, not 2'),
        ("(e.g. `--gpu-memory-utilization 0.5`)", '(e.g. "gpu_memory_utilization": 0.5)'),
        ("`--runner pooling` or `--runner auto`", '"runner": "pooling" or "runner": "auto"'),
        ("remove --no-enforce-eager", 'remove "enforce_eager": false'),
        ("set --pooler-config.task.", 'set "pooler_config.task".'),
        ("a --tokens-only server --runner-up", "a --tokens-only server --runner-up"),
        ("`--no-such thing`", "`--no-such thing`"),
        ("pass `--runner <a|b> to adapt", 'pass "runner" <a|b> to adapt'),
        ("--enable-auto-tool-choice and --x", '"enable_auto_tool_choice" and --x'),
    ],
)
def test_a_flag_becomes_a_key(text: str, expected: str) -> None:
    """With its value; what is no option of vLLM's stays."""
    assert expected == flags_as_keys(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no flag", "no flag"),
        ("needs --runner to be set", 'needs "runner" in f.json to be set'),
        (
            "requires --enable-auto-tool-choice and --tool-call-parser to be set",
            'requires "enable_auto_tool_choice" and "tool_call_parser" in f.json to be set',
        ),
    ],
)
def test_the_file_comes_once_after_the_last_key(text: str, expected: str) -> None:
    """A client's error says where the operator has to look."""
    assert expected == flags_as_keys(text, KNOWN, "f.json")

"""vLLM's flags in its errors: what a client or an operator sees names keys in their place.

The texts are those of the vLLM at hand: some are provoked, the others read from its source.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm

from tests.contract.test_requests import CONFIG
from triton_vllm.config.settings import ENGINE_ARGS_FILE
from triton_vllm.vllm_api import api as vllm_api

SOURCE = Path(vllm.__file__).parent
# Parts whose errors a model of ours can meet. The rest is vLLM's other programs and its kernels.
PARTS = ["config", "engine", "entrypoints", "lora", "multimodal", "reasoning", "renderers"]
PARTS += ["tool_parsers", "v1"]
PROGRAMS = ("cli", "launchers", "grpc_server.py", "dp_supervisor.py", "run_batch.py")
# No options of a model here, in any of the versions.
NOT_OURS = {
    *("--headless", "--api-server-count", "--data-parallel-", "--grpc", "--url"),
    *("--logits-processor-pattern", "--enable-hybrid-kv-cache-manager"),
    *("--disable-prefix-caching",),
}
FLAG = re.compile(r"--[a-z][\w-]*")


def texts_of_errors() -> Iterator[str]:
    """Yield the text of each error of vLLM's in which there is a flag, "x" for each value in it."""
    for part in PARTS:
        for file in (SOURCE / part).rglob("*.py"):
            source = file.read_text(encoding="utf-8")
            if "--" in source and not set(file.parts).intersection(PROGRAMS):
                for node in ast.walk(ast.parse(source)):
                    if is_error(node) and FLAG.search(text := constants(node)):
                        yield text


def is_error(node: ast.AST) -> bool:
    """Return whether it raises an error, or makes one of the OpenAI-compatible front end."""
    makes = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("create_error_response")
    return isinstance(node, ast.Raise) or makes


def constants(node: ast.AST) -> str:
    """Return the strings below a node in their order, "x" for what is formatted into them."""
    if isinstance(node, ast.FormattedValue):
        return "x"
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(constants(child) for child in ast.iter_child_nodes(node))


def test_no_error_of_vllms_names_a_flag_that_is_a_key() -> None:
    """There is no command line here; the operator has a file."""
    texts = list(texts_of_errors())
    assert len(texts) > 50
    left = {flag for text in texts for flag in FLAG.findall(vllm_api.as_keys(text))}
    assert left <= NOT_OURS


@pytest.mark.parametrize(
    ("given", "flag", "key"),
    [
        ({"runner": "pooling", "convert": "none"}, "--runner pooling", '"runner": "pooling"'),
    ],
    ids=["a runner that the model does not have"],
)
def test_an_error_of_a_load_names_keys(
    tmp_path: Path, given: dict[str, Any], flag: str, key: str
) -> None:
    """The key follows the name of the file."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    args = vllm_api.AsyncEngineArgs(model=str(tmp_path), skip_tokenizer_init=True, **given)
    with pytest.raises(Exception) as raised:  # noqa: PT011 (pydantic's, around vLLM's)
        vllm_api.create_config(args)
    assert flag in str(raised.value)
    assert flag not in vllm_api.as_keys(raised.value)
    assert key in vllm_api.as_keys(raised.value)


def test_an_error_of_a_request_names_the_file_too() -> None:
    """As the client has to ask the operator."""
    texts = [text for text in texts_of_errors() if "thinking_token_budget" in text]
    assert texts
    for text in texts:
        assert f'"reasoning_config" in {ENGINE_ARGS_FILE}' in vllm_api.why_wrong(text)

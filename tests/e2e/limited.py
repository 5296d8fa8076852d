"""A server with low limits on each request and on the queue, over both protocols."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.openai_port import client_of, complete
from tests.e2e.processes import free_ports
from tests.e2e.tiny_server import CONTEXT, add_tiny_model
from tests.e2e.triton_server import TritonServer

BATCH = 2
BATCHED_TOKENS = 256
LIMIT = 3.0  # seconds
MAX_QUEUED_TOKENS = 5_000
MAX_SEQUENCES = 8
DEFAULT_TOKENS = 20
GRAMMAR_SECONDS = 0.001  # of an ordinary grammar, with a vocabulary of 49,152 tokens
DRAIN_SECONDS = 2


@dataclass(frozen=True)
class Limited:
    """The server, and its OpenAI-compatible port."""

    triton: TritonServer
    port: int

    def completions(self, tokens: int = CONTEXT - 10, **how: Any) -> Any:
        """Ask over the OpenAI-compatible port, for a text that does not end in any test's time."""
        with client_of(self.port) as client:
            return complete(client, tokens, **{"temperature": 0} | how)


def start(directory: Path) -> Limited:
    """Start it; its files are in ``directory``."""
    (port,) = free_ports(1)
    serving = {
        "preload": False,  # as on no other server of these tests
        "metrics_interval_seconds": 0.1,
        "default_timeout_seconds": LIMIT,
        "max_queued_tokens": MAX_QUEUED_TOKENS,
        "max_n": MAX_SEQUENCES,
        "default_max_tokens": DEFAULT_TOKENS,
        "grammar_compile_timeout_seconds": GRAMMAR_SECONDS,
        "drain_timeout_seconds": DRAIN_SECONDS,
        "openai": {"port": port, "served_model_name": "tiny"},
    }
    repository = add_tiny_model(
        directory,
        serving,
        max_num_seqs=BATCH,
        max_num_batched_tokens=BATCHED_TOKENS,
        enable_prefix_caching=False,
    )
    return Limited(TritonServer(repository, "limits", "vllm"), port)

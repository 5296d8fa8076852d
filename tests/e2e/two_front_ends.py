"""Two front ends of one engine, which serve Triton's protocols and an OpenAI-compatible port."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.model_folder import CHECKPOINT, add_model, check_prerequisites, use_front_ends
from tests.e2e.openai_port import engine_args
from tests.e2e.processes import free_ports
from tests.e2e.tiny_server import CONTEXT
from tests.e2e.tls import self_signed
from tests.e2e.triton_server import TritonServer
from tests.tiny_llama import make_tiny_llama

FRONT_ENDS = 2
NO_METRICS = 'parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "false" } }'


@dataclass(frozen=True, slots=True)
class TwoFrontEnds:
    """A server with the model `vllm` on a port; `embed` and `thief` can be loaded, too."""

    triton: TritonServer
    port: int
    embed_port: int
    certificate: Path


def start(folder: Path) -> TwoFrontEnds:
    """Start it with tiny models of random weights.

    The engine core of `vllm` is forked from a process that has imported vLLM. `embed` has TLS, its
    API key in a file, a prefix and no metrics; `thief` wants the port of `vllm`. Triton completes
    no configuration, so that config.pbtxt has to be complete by itself.
    """
    check_prerequisites()
    repository = folder / "repository"
    checkpoint = make_tiny_llama(folder / "tiny", CHECKPOINT, CONTEXT)
    certificate, key = self_signed(folder)
    (folder / "keys").write_text("sk-of-the-file\n")
    port, embed_port = free_ports(2)
    how: dict[str, Any] = {"model": str(checkpoint), "enable_log_requests": False}
    how |= {"max_model_len": CONTEXT, "dtype": "float32"}
    own = {"port": port, "served_model_name": "tiny", "drain_timeout_seconds": 300}
    use_front_ends(add_model(repository, engine_args=engine_args(own, **how)), FRONT_ENDS)
    secure = {
        "port": embed_port,
        "api_keys_file": str(folder / "keys"),
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
        "root_path": "/llm",
    }
    pooling = how | {"runner": "pooling", "served_model_name": "embed"}
    embed = add_model(repository, "embed", engine_args=engine_args(secure, **pooling))
    with (embed / "config.pbtxt").open("a") as config:
        config.write(NO_METRICS)
    add_model(repository, "thief", engine_args=engine_args({"port": port}, **how))
    # The time to drain is what this leaves of it.
    options = ("--exit-timeout-secs=330", "--disable-auto-complete-config")
    triton = TritonServer(repository, "front_ends", "vllm", options=options)
    return TwoFrontEnds(triton, port, embed_port, certificate)

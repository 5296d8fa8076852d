"""Models of random weights on the real server, made once and loaded one by one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.triton_server import EXECUTION_ENV, ROOT, Response, TritonServer, add_model, ask

MAKE_SECONDS = 240
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 33554432,
}


def make(dest: Path) -> None:
    """Make the checkpoints, with the execution environment's transformers."""
    made = subprocess.run(
        [EXECUTION_ENV / "bin/python", ROOT / "tests/e2e/make_tiny_models.py", dest],
        capture_output=True,
        text=True,
        timeout=MAKE_SECONDS,
        check=False,
        env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert made.returncode == 0, made.stderr[-4000:]


@dataclass
class TinyModels:
    """The checkpoints in ``checkpoints``, and a server that loads them when they are asked for."""

    server: TritonServer
    checkpoints: Path
    _loaded: set[str] = field(default_factory=set)

    @property
    def expected(self) -> dict[str, Any]:
        """What transformers makes of some inputs."""
        values: dict[str, Any] = json.loads((self.checkpoints / "expected.json").read_text())
        return values

    def folder(self, name: str) -> Path:
        """Return a model's folder in the server's repository."""
        return self.server.repository / name

    def serve(self, name: str, files: dict[str, str] | None = None, **engine_args: Any) -> None:
        """Load the checkpoint ``name``; ``files`` go into the model's folder by relative path."""
        if name in self._loaded:
            return
        args = {**SMALL, "model": str(self.checkpoints / name), **engine_args}
        model = add_model(self.server.repository, name, engine_args=json.dumps(args))
        for path, content in (files or {}).items():
            (model / path).write_text(content)
        error = self.server.load(name)
        assert not error, f"{error}\n{self.server.log_tail()}"
        self._loaded.add(name)

    def ask(self, model: str, inputs: dict[str, Any], **how: Any) -> Response:
        """Send a request that is not streamed; return its one response."""
        return whole(ask(self.server, inputs, model=model, **how))


def whole(responses: list[Response]) -> Response:
    """Return the one response that is not the empty end of a stream."""
    filled = [response for response in responses if response.outputs or response.error]
    assert len(filled) == 1, filled
    return filled[0]


def deltas(responses: list[Response], output: str) -> Iterator[str]:
    """Yield what each response of one sequence holds in ``output``."""
    for response in responses:
        assert not response.error, response.error
        if response.outputs:
            (element,) = response.outputs[output]
            yield element


def serve_chat(tiny: TinyModels) -> None:
    """Load the chat model, with LoRA adapters, a reasoning parser and a tool parser."""
    adapters = {
        "loud": str(tiny.checkpoints / "adapters/loud"),
        "quiet": str(tiny.checkpoints / "adapters/quiet"),
        "broken": str(tiny.checkpoints / "adapters"),
    }
    tiny.serve(
        "chat",
        {"1/multi_lora.json": json.dumps(adapters)},
        enable_lora="true",
        max_loras=2,
        max_lora_rank=8,
        reasoning_parser="qwen3",
        tool_call_parser="hermes",
        enable_auto_tool_choice=True,
    )


def serve_vision(tiny: TinyModels) -> None:
    """Load the model that sees, with two hosts listed, and LoRA without an adapter yet."""
    tiny.serve(
        "vision",
        {"multi_lora.json": "{}"},
        enable_lora=True,
        max_lora_rank=8,
        limit_mm_per_prompt={"image": 2},
        allowed_media_domains=["127.0.0.1", "localhost"],
    )

"""Models of random weights on the real server, made once and loaded one by one."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.grpc_requests import Response, ask
from tests.e2e.model_folder import CACHE, EXECUTION_ENV, ROOT, add_model
from tests.e2e.processes import free_ports
from tests.e2e.triton_server import HAS_GPU, TritonServer

MAKE_SECONDS = 400
# What decodes sound and film: not in every environment, so it is laid beside the models that hear
# and see (scripts/test.sh makes the folder).
MEDIA_PACKAGES = Path(os.environ.get("TRITON_VLLM_MEDIA_PACKAGES", CACHE / "media-packages"))
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "kv_cache_memory_bytes": 33554432,
}


def make(scratch: Path) -> Path:
    """Make the checkpoints with the execution environment's transformers; return their folder.

    They stay in the cache, for other workers and for later runs. ``scratch`` is an empty folder on
    any file system.
    """
    assert MEDIA_PACKAGES.is_dir(), f"{MEDIA_PACKAGES} is missing: run scripts/test.sh once"
    script = ROOT / "tests/e2e/make_tiny_models.py"
    environment = (EXECUTION_ENV / "bin/activate").stat().st_mtime_ns
    wanted = hashlib.sha256(script.read_bytes() + str(environment).encode()).hexdigest()[:12]
    kept = CACHE / f"tiny-models-{wanted}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "tiny-models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            _make(script, scratch / "tiny")
            for old in CACHE.glob("tiny-models-*"):
                shutil.rmtree(old)
            copied = CACHE / "tiny-models.new"
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(scratch / "tiny", copied)
            copied.rename(kept)
    return kept


def _make(script: Path, dest: Path) -> None:
    made = subprocess.run(
        [EXECUTION_ENV / "bin/python", script, dest],
        capture_output=True,
        text=True,
        timeout=MAKE_SECONDS,
        check=False,
        env={
            "HF_HUB_OFFLINE": "1",
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(MEDIA_PACKAGES),
        },
    )
    assert made.returncode == 0, made.stderr[-4000:]


@dataclass
class TinyModels:
    """The checkpoints in ``checkpoints``, and a server that serves one of them at a time.

    Each takes two gigabytes of memory, nearly all of it vLLM.
    """

    server: TritonServer
    checkpoints: Path
    openai_port: int = 0
    _served: str = ""

    @property
    def expected(self) -> dict[str, Any]:
        """What transformers makes of some inputs."""
        values: dict[str, Any] = json.loads((self.checkpoints / "expected.json").read_text())
        return values

    def folder(self, name: str) -> Path:
        """Return a model's folder in the server's repository."""
        return self.server.repository / name

    def clip(self, name: str) -> bytes:
        """Return a short audio clip or video."""
        return (self.checkpoints / "clips" / name).read_bytes()

    def serve(self, name: str, files: dict[str, str] | None = None, **engine_args: Any) -> None:
        """Load the checkpoint ``name``; ``files`` go into the model's folder by relative path."""
        if name == self._served:
            return
        if self._served:
            self.server.unload(self._served)
        if self.folder(name).exists():
            self.server.await_state(name, "UNAVAILABLE", 60)
        else:
            small = dict(SMALL)
            if "enable_lora" in engine_args and HAS_GPU:
                small["dtype"] = "bfloat16"  # vLLM's kernels of adapters take no float32 on GPUs
            args = {**small, "model": str(self.checkpoints / name), **engine_args}
            model = add_model(self.server.repository, name, engine_args=json.dumps(args))
            for path, content in (files or {}).items():
                (model / path).write_text(content)
            if name in ("audio", "video"):
                for package in MEDIA_PACKAGES.iterdir():
                    if package.name != "__pycache__":
                        (model / "1" / package.name).symlink_to(package)
        error = self.server.load(name)
        assert not error, f"{error}\n{self.server.log_tail()}"
        self._served = name

    def run_line(self, line: str, model: str) -> dict[str, Any]:
        """Send what a curl line of the document sends, to ``model``; return the answer."""
        _, url, _, body = shlex.split(line)
        status, text = self.server.post(
            f"v2/models/{model}/{url.split('/', 1)[1]}", json.loads(body)
        )
        assert status == 200, text
        answer: dict[str, Any] = json.loads(text)
        return answer

    def perceive(
        self, model: str, prompt: str, parameters: str, **media: list[bytes | str]
    ) -> tuple[str, int]:
        """Return what the model says to ``media``, and how many tokens the prompt has.

        Bytes are sent as base64.
        """
        items = {
            kind: [base64.b64encode(i).decode() if isinstance(i, bytes) else i for i in items]
            for kind, items in media.items()
        }
        inputs = {
            "text_input": prompt,
            **items,
            "sampling_parameters": parameters,
            "exclude_input_in_output": True,
            "return_num_input_tokens": True,
        }
        response = self.ask(model, inputs)
        assert not response.error, response.error
        return response.outputs["text_output"][0], int(response.outputs["num_input_tokens"][0])

    def ask(self, model: str, inputs: dict[str, Any], **how: Any) -> Response:
        """Send a request that is not streamed; return its one response."""
        return whole(ask(self.server, inputs, model=model, **how))


def document_lines(variable: str) -> list[tuple[str, str]]:
    """Return the names and curl lines of docs/requests.md for models at $``variable``."""
    document = (ROOT / "docs/requests.md").read_text(encoding="utf-8")
    found = re.findall(rf"^\| `(\w+)` \|.*`(curl \${variable}/.*)` \|$", document, re.MULTILINE)
    assert len(found) == document.count(f"`curl ${variable}/")
    assert found
    return found


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
    """Load the chat model, with LoRA adapters, a reasoning parser and a tool parser.

    Its OpenAI-compatible port has a list of adapters for itself.
    """
    adapters = {
        "loud": str(tiny.checkpoints / "adapters/loud"),
        "quiet": str(tiny.checkpoints / "adapters/quiet"),
        "broken": str(tiny.checkpoints / "adapters"),
    }
    tiny.openai_port = tiny.openai_port or free_ports(1)[0]
    modules = [{"name": "adapter", "path": adapters["loud"]}]
    own = {"port": tiny.openai_port, "served_model_name": "chat", "lora_modules": modules}
    tiny.serve(
        "chat",
        {"1/multi_lora.json": json.dumps(adapters)},
        enable_lora="true",
        max_loras=2,
        max_lora_rank=8,
        reasoning_parser="qwen3",
        tool_call_parser="hermes",
        enable_auto_tool_choice=True,
        serving={"openai": own, "unsupported_schema_keywords": "refuse"},
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


def serve_audio(tiny: TinyModels) -> None:
    """Load the audio model with a listed host."""
    tiny.serve(
        "audio",
        max_model_len=1024,
        limit_mm_per_prompt={"audio": 2},
        allowed_media_domains=["127.0.0.1"],
    )


def serve_video(tiny: TinyModels) -> None:
    """Load the video model with a listed host."""
    tiny.serve("video", max_model_len=1024, allowed_media_domains=["127.0.0.1"])

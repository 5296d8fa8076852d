"""A real ``vllm serve`` on loopback, to compare with."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from tests.e2e.model_folder import EXECUTION_ENV
from tests.e2e.processes import free_ports
from tests.e2e.triton_server import LOGS, START_SECONDS

# As ``vllm serve`` does, without the command, which a moved environment may lack.
MODULE = "vllm.entrypoints.openai.api_server"


class VllmServe:
    """The server's completions endpoint."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_up(self) -> bool:
        """Return whether it serves."""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self._url}/health", timeout=5).close()
            return True
        return False

    def complete(self, prompt: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the choices for a prompt."""
        request = urllib.request.Request(
            f"{self._url}/v1/completions",
            data=json.dumps({"model": "m", "prompt": prompt, **parameters}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            choices: list[dict[str, Any]] = json.load(response)["choices"]
        return choices


@contextlib.contextmanager
def vllm_serve(engine_args: Mapping[str, Any]) -> Iterator[VllmServe]:
    """Run a server with these engine arguments, of the execution environment's vLLM."""
    (port,) = free_ports(1)
    command = [str(EXECUTION_ENV / "bin/python"), "-m", MODULE, "--host=127.0.0.1"]
    command += [f"--port={port}", "--served-model-name=m", *_as_options(engine_args)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / "vllm_serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        server = VllmServe(port)
        deadline = time.monotonic() + START_SECONDS
        while not server.is_up():
            assert process.poll() is None, f"ended with {process.poll()}, see {log.name}"
            assert time.monotonic() < deadline, f"not ready in {START_SECONDS} s, see {log.name}"
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _as_options(engine_args: Mapping[str, Any]) -> Iterator[str]:
    for key, value in engine_args.items():
        option = "--" + key.replace("_", "-")
        if value is True:
            yield option
        else:
            yield f"{option}={json.dumps(value) if isinstance(value, dict) else value}"

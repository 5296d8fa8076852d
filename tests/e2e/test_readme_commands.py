"""The README's commands that ask a server, asked of the real one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.model_folder import ROOT
from tests.e2e.triton_server import TritonServer

README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
CLIENT_LINES = re.findall(r"^python3 (client\.py .*)$", README, re.MULTILINE)
CURL_LINES = re.findall(r"^(curl .*/v2/models/.*)$", README, re.MULTILINE)


def run(command: list[str], directory: Path) -> str:
    """Run a command in ``directory``; return its stdout; raise if it fails."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_such_commands() -> None:
    """The patterns above still find the README's commands."""
    assert (2, 2) == (len(CLIENT_LINES), len(CURL_LINES))


@pytest.mark.parametrize("line", CLIENT_LINES)
def test_the_readmes_client_lines(triton: TritonServer, tmp_path: Path, line: str) -> None:
    """Each passes against the real model; shortened to a few tokens."""
    for name in ("client.py", "prompts.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shorter = ["--url", f"127.0.0.1:{triton.grpc_port}", "--max-tokens", "4", "--temperature", "0"]
    said = run([sys.executable, *shlex.split(line), *shorter], tmp_path)
    assert said.endswith("PASS: vLLM example\n")
    answers = (tmp_path / "results.txt").read_text(encoding="utf-8").split("\n\n=========\n\n")
    assert answers[2].startswith("The capital of France is Paris")


@pytest.mark.parametrize("line", CURL_LINES)
def test_the_readmes_curl_lines(triton: TritonServer, tmp_path: Path, line: str) -> None:
    """Each is answered by the real model."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = shlex.split(line.replace("localhost:8000", f"127.0.0.1:{triton.http_port}"))
    assert " Paris" in run(command, tmp_path)


def test_the_client_counts_tokens(triton: TritonServer, tmp_path: Path) -> None:
    """The closing line has tokens/s, since the model says how many tokens a response holds."""
    command = [sys.executable, str(ROOT / "client.py"), "--url", f"127.0.0.1:{triton.grpc_port}"]
    command += ["--input-prompts", str(ROOT / "prompts.txt"), "--streaming-mode"]
    command += ["--max-tokens", "5", "--ignore-eos"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    requests, tokens, seconds = (
        float(re.search(pattern, done.stderr)[1])  # type: ignore[index]
        for pattern in (r"(\d+) requests", r"([\d.]+) tokens/s", r"in ([\d.]+) s")
    )
    assert 5 * requests == pytest.approx(tokens * seconds, rel=0.05)

"""The bench, against real servers: run.py over each protocol, compare.py with several peers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.model_folder import CHECKPOINT, EXECUTION_ENV, ROOT, TRITON
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(400)

RUN, COMPARE = ROOT / "bench/run.py", ROOT / "bench/compare.py"
TOKENS = 8


@pytest.mark.parametrize(
    ("protocol", "how"),
    [
        pytest.param("triton-grpc", [], id="gRPC, streamed"),
        pytest.param("triton-http", ["--not-streamed"], id="HTTP, whole"),
        pytest.param("triton-grpc", ["--not-streamed"], id="gRPC, whole", marks=pytest.mark.slow),
        pytest.param("triton-http", [], id="HTTP, streamed", marks=pytest.mark.slow),
    ],
)
def test_run_measures_our_server(triton: TritonServer, protocol: str, how: list[str]) -> None:
    """Each protocol of Triton gives all tokens, as the server counts them, and the times."""
    port = triton.grpc_port if protocol == "triton-grpc" else triton.http_port
    command = [
        sys.executable, str(RUN), f"--url=127.0.0.1:{port}", f"--protocol={protocol}", "--json",
        f"--tokenizer={CHECKPOINT}", "--input-tokens=16", f"--output-tokens={TOKENS}",
        "--streams=2", "--processes=2", "--requests=4", "--temperature=0", *how,
    ]  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert 0 == outcome.returncode, outcome.stdout + outcome.stderr
    found = json.loads(outcome.stdout)
    assert (4, 0, 4 * TOKENS) == (found["requests"], found["failed"], found["output_tokens"])
    assert 0 < found["ttft_ms"]["p50"] <= found["latency_ms"]["p50"]
    assert (found["messages_per_request"] == 1) == bool(how)


def test_run_says_what_the_server_refuses(triton: TritonServer) -> None:
    """A request that the model refuses counts as failed, with the model's reason."""
    command = [
        sys.executable, str(RUN), f"--url=127.0.0.1:{triton.grpc_port}", "--requests=2",
        "--streams=1", '--sampling-parameters={"temprature": 1}',
    ]  # fmt: skip
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert 1 == outcome.returncode
    assert 'did you mean "temperature"' in outcome.stdout


def compare_command(out: Path, peers: str, *flags: str) -> list[str]:
    return [
        sys.executable, str(COMPARE), f"--peers={peers}", f"--out={out}", f"--model={CHECKPOINT}",
        f"--python={EXECUTION_ENV}/bin/python", f"--triton={TRITON}", "--processes=1",
        f"--execution-env={EXECUTION_ENV}", "--env=HF_HUB_OFFLINE=1", "--env=VLLM_NO_USAGE_STATS=1",
        *flags,
    ]  # fmt: skip


def left_behind(folder: Path) -> list[str]:
    """Return the processes that a comparison has started in its folder and not ended."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or ["?"]))
    return found


@pytest.mark.slow
def test_compare_measures_all_peers(tmp_path: Path) -> None:
    """VLLM's server, ours and our send path take turns; files and figures tell what came of it."""
    peers = ["vllm", "ours-1", "send-1x2", "send-1x2-http", "offline"]
    command = compare_command(
        tmp_path, ",".join(peers), "--streams=2", "--modes=stream,whole", "--repeats=1"
    )
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert 0 == outcome.returncode, outcome.stdout + outcome.stderr
    results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    measured = [(row["peer"], row["stream"]) for row in results["rows"]]
    # What is offline streams nothing.
    expected = [(peer, stream) for stream in (True, False) for peer in peers]
    assert [turn for turn in expected if turn != ("offline", True)] == measured
    for row in results["rows"]:
        assert 0 < row["tokens_per_second"]
        assert "server_cores" in row
    resolved = results["resolved"]
    for key in ("vllm", "max_seq_len", "dtype"):
        assert resolved["vllm"][key] == resolved["ours-1"][key]
    assert "| ours-1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "latency_streamed.png").exists()
    assert [] == left_behind(tmp_path)


@pytest.mark.slow
def test_an_interrupted_comparison_ends_its_servers(tmp_path: Path) -> None:
    """SIGTERM ends compare.py and its servers, and leaves what was measured."""
    command = compare_command(tmp_path, "send-1", "--streams=1", "--repeats=10000")
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "results.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert 130 == process.wait(60)
    finally:
        process.kill()
    assert json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [] == left_behind(tmp_path)

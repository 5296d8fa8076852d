"""client.py as its users run it, against the real Triton serving the echo model."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.echo_server import Server, serving
from tests.e2e.processes import free_ports

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client.py"
SEPARATOR = "\n\n=========\n\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of client.py left behind."""

    code: int
    stdout: str
    stderr: str
    results: str


@pytest.fixture(scope="session")
def server(stub_prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One tritonserver with the echo models for all tests."""
    with serving(tmp_path_factory.mktemp("echo"), stub_prefix) as running:
        yield running


def start(server_url: str, folder: Path, prompts: list[str], *flags: str) -> subprocess.Popen[str]:
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    command = [sys.executable, str(CLIENT), "--url", server_url, *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str], folder: Path) -> Outcome:
    try:
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    results = folder / "results.txt"
    text = results.read_text() if results.exists() else ""
    return Outcome(process.returncode, stdout, stderr, text)


Ask = Callable[..., Outcome]


@pytest.fixture
def ask(server: Server, tmp_path: Path) -> Ask:
    """Run client.py in a folder of its own: ask(prompts, *flags)."""
    return lambda prompts, *flags: finish(start(server.url, tmp_path, prompts, *flags), tmp_path)


def test_the_tutorials_lines_are_the_whole_stdout(ask: Ask) -> None:
    """A run that passes prints the tutorial's three lines, and its figures on stderr."""
    outcome = ask(["one two"])
    expected = "Loading inputs from `prompts.txt`...\nStoring results into `results.txt`...\n"
    assert expected + "PASS: vLLM example\n" == outcome.stdout
    assert re.match(r"1 requests \(0 failed\) in [\d.]+ s, .*whole answer p50 ", outcome.stderr)
    assert 0 == outcome.code


@pytest.mark.parametrize("streaming", [[], ["-s"]], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("exclude", "expected"),
    [([], "one two one two"), (["--exclude-inputs-in-outputs"], " one two")],
    ids=["with prompt", "without prompt"],
)
def test_streaming_changes_no_text(
    ask: Ask, streaming: list[str], exclude: list[str], expected: str
) -> None:
    """Streamed or not, a result is the text, after its prompt unless that is excluded."""
    outcome = ask(["one two"], *streaming, *exclude)
    assert expected + SEPARATOR == outcome.results
    assert 0 == outcome.code


def test_results_are_in_id_order(ask: Ask) -> None:
    """A slow first request does not change the order of the results."""
    outcome = ask(["wait 0.5: a", "b", "", "  c  "], "--iterations=3", "-s", "--concurrency=4")
    once = ["wait 0.5: a a", "b b", "c c"]
    assert SEPARATOR.join(once * 3) + SEPARATOR == outcome.results


def test_ids_start_at_the_offset(ask: Ask) -> None:
    """A failure names its id, counted from --offset over all iterations."""
    outcome = ask(["a", "error: no"], "--iterations=2", "--offset=10", "--concurrency=1")
    assert ["request 11: no", "request 13: no"] == outcome.stderr.splitlines()[:2]


def test_several_sequences_stay_apart(ask: Ask) -> None:
    """With n=2 each element of the streamed output continues its own sequence."""
    outcome = ask(["x y"], "-s", "--exclude-inputs-in-outputs", '--sampling-parameters={"n": 2}')
    assert " x y\n\n---------\n\n x x y y" + SEPARATOR == outcome.results


def test_sampling_parameters_reach_the_model(ask: Ask) -> None:
    """Flags become sampling parameters, and --sampling-parameters wins over them."""
    flags = ["--max-tokens=5", "--seed=7", "--stop=a", "--stop=b", "--ignore-eos"]
    generic = '--sampling-parameters={"seed": 8, "top_k": 3}'
    outcome = ask(["parameters: x"], *flags, generic, "--exclude-inputs-in-outputs")
    expected: dict[str, object] = {"max_tokens": 5, "temperature": 0.1, "top_p": 0.95, "seed": 8}
    expected |= {"stop": ["a", "b"], "ignore_eos": True, "top_k": 3}
    assert expected == json.loads(outcome.results.removesuffix(SEPARATOR))


@pytest.mark.parametrize("streaming", [[], ["-s"]], ids=["whole", "streamed"])
def test_a_bad_request_fails_alone(ask: Ask, streaming: list[str]) -> None:
    """A request's error fails the run, names id and reason, and leaves the other texts."""
    prompts = ["a", "error: too long", "break: b", "silent: c", "d"]
    outcome = ask(prompts, *streaming)
    reasons = {
        "request 1: too long",
        "request 2: broken off",
        "request 3: a final response without text",
    }
    assert reasons == {line for line in outcome.stderr.splitlines() if line.startswith("request")}
    assert SEPARATOR.join(["a a", "", "", "", "d d", ""]) == outcome.results
    assert "FAIL: vLLM example" == outcome.stdout.splitlines()[-1]
    assert 1 == outcome.code


def test_text_without_its_final_response_fails(ask: Ask, server: Server) -> None:
    """All the text but no FINAL flag is a failure at the deadline, cancelled at the server."""
    outcome = ask(["a", "hang: b"], "-s", "--stream-timeout=1", "--offset=500")
    assert "request 501: not complete within 1 s (--stream-timeout)" in outcome.stderr
    assert server.await_log("request 501 cancelled")
    assert 1 == outcome.code


def test_token_counts_are_asked_for_where_the_model_has_them(ask: Ask) -> None:
    """Tokens are reported only for a model that counts them."""
    assert "tokens/s" in ask(["a b c"], "-s", "--model=counted").stderr
    assert "tokens/s" not in ask(["a b c"], "-s").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_a_signal_cancels_at_the_server(server: Server, tmp_path: Path, number: int) -> None:
    """After a signal the server sees the cancellation and complete texts are in the file."""
    offset = 1000 * number
    prompts = ["a", "hang: b", "c", "hang: d"]
    client = start(server.url, tmp_path, prompts, "-s", f"--offset={offset}")
    results = tmp_path / "results.txt"
    while not results.exists() or not results.read_text():
        assert client.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    client.send_signal(number)
    outcome = finish(client, tmp_path)
    name = signal.Signals(number).name
    assert f"client.py: {name}: 2 of 4 answered, the rest cancelled\n" == outcome.stderr
    assert SEPARATOR.join(["a a", "", "c c", ""]) == outcome.results
    assert 128 + number == outcome.code
    assert server.await_log(f"request {offset + 1} cancelled")
    assert server.await_log(f"request {offset + 3} cancelled")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("nonesuch", "nonesuch"), ("other", "not `text_input`")],
    ids=["unknown", "other tensors"],
)
def test_a_model_of_no_use_is_said_in_a_line(ask: Ask, model: str, expected: str) -> None:
    """For an unknown model, or one with other tensors, it prints one line and exits with 1."""
    outcome = ask(["a"], f"--model={model}")
    assert 1 == outcome.stderr.count("\n")
    assert expected in outcome.stderr
    assert 1 == outcome.code


def test_a_server_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    """Without a server the client prints one line, exits with 1 and keeps earlier results."""
    (tmp_path / "results.txt").write_text("earlier")
    (port,) = free_ports(1)
    outcome = finish(start(f"127.0.0.1:{port}", tmp_path, ["a"]), tmp_path)
    assert 1 == outcome.stderr.count("\n")
    assert f"127.0.0.1:{port}" in outcome.stderr
    assert "earlier" == outcome.results
    assert 1 == outcome.code


def test_a_server_that_dies_ends_the_run(stub_prefix: Path, tmp_path: Path) -> None:
    """When the server goes, the run ends with a line and exit code 1, not one for each request."""
    with serving(tmp_path, stub_prefix) as doomed:
        client = start(doomed.url, tmp_path, ["slow 0.1: a b c d e f"], "-s", "--iterations=1000")
        while not (tmp_path / "results.txt").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        doomed.process.kill()
        outcome = finish(client, tmp_path)
    assert 1 == outcome.stderr.count("\n")
    assert doomed.url in outcome.stderr
    assert 1 == outcome.code


def test_a_full_disk_is_said_in_a_line(ask: Ask) -> None:
    """If it cannot write the results file, the client prints one line and exits with 2."""
    outcome = ask(["a"], "--results-file=/dev/full")
    assert "client.py: /dev/full: No space left on device\n" == outcome.stderr
    assert 2 == outcome.code

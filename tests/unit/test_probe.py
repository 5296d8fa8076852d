"""What scripts/probe.py makes of a server's answers. The server's own are in tests/e2e."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

PROBE = Path(__file__).parents[2] / "scripts/probe.py"
LABELS = '{front_end="0",model="vllm",version="1"}'
AGE = re.compile(r"(\d+) s ago")  # in a body, it becomes a time when the body is served
DEAD = "the engine died (process 7) and could not be restarted: no"


@contextmanager
def answering(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Serve a status and a body for each path; yield the address. Others are not found."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(AGE.sub(lambda age: f"{time.time() - float(age[1])}", body).encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def probe(what: str, address: str, *options: str) -> tuple[int, str]:
    """Run the probe; return its exit code and its line."""
    words = [sys.executable, str(PROBE), what, f"--http={address}", f"--metrics={address}"]
    done = subprocess.run([*words, *options], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip() + done.stderr


def metrics(age: float, *, up: int = 1, gave_up: int = 0, labels: str = LABELS) -> str:
    """Return what a front end exports, ``age`` seconds after its loop was last seen alive."""
    name = "triton_vllm:"
    return (
        f"{name}heartbeat_timestamp_seconds{labels} {age:g} s ago\n"
        f"{name}engine_up{labels} {up}\n{name}engine_failed{labels} {gave_up}\n"
    )


OTHER = LABELS.replace("vllm", "other")


@pytest.mark.parametrize(
    ("text", "live", "ready"),
    [
        (metrics(0), "live: yes", "ready: yes"),
        ("", "live: yes", "ready: no: no heartbeat of vllm"),
        (metrics(0, labels=OTHER), "live: yes", "ready: no: no heartbeat of vllm"),
        (metrics(0) + metrics(99, gave_up=1, labels=OTHER), "live: yes", "ready: yes"),
        (metrics(0, up=0), "live: yes", "ready: no: the engine is down"),
        (metrics(0) + metrics(99), "live: no: the last heartbeat", "ready: no: the last heart"),
        (metrics(0, up=0, gave_up=1), "live: no: the engine died", "ready: no: the engine died"),
    ],
    ids=["serves", "unloaded", "another", "dead other", "restarting", "killed", "gave up"],
)
def test_metrics_tell_life_and_readiness(text: str, live: str, ready: str) -> None:
    """`live` fails only if a restart of the server is needed; otherwise `ready` may fail."""
    answers = {"/metrics": (200, text), "/v2/models/vllm/ready": (200, "")}
    with answering(answers) as address:
        for what, expected in (("live", live), ("ready", ready)):
            code, line = probe(what, address)
            assert line.startswith(expected), line
            assert (": no" in expected) == (code == 1)


@pytest.mark.parametrize(
    ("status", "error", "live"),
    [
        (200, "", True),
        (404, "Request for unknown model: 'vllm' is not found", True),
        (503, "the model is being unloaded or the server stopped", True),
        (503, "the engine died (process 7) and is being restarted", True),
        (503, f"the engine died (process 7: {'x' * 500}) and is being restarted", True),
        (503, DEAD, False),
        (400, "Stub process 'vllm_0' is not healthy.", False),
    ],
    ids=["serves", "unloaded", "drains", "restarting", "long cause", "gave up", "killed"],
)
def test_a_request_tells_where_metrics_are_off(status: int, error: str, live: bool) -> None:
    """The same by what the model, or Triton in its absence, answers."""
    answers = {"/v2/models/vllm/generate": (status, error), "/v2/models/vllm/ready": (200, "")}
    with answering(answers) as address:
        assert live == (0 == probe("live", address, "--request")[0])
        assert (status == 200) == (0 == probe("ready", address, "--request")[0])


@pytest.mark.parametrize("options", [[], ["--request"]], ids=["metrics", "request"])
@pytest.mark.parametrize("what", ["live", "ready"])
def test_a_server_that_does_not_answer_is_dead(what: str, options: list[str]) -> None:
    """Nobody listens: both are red."""
    code, line = probe(what, "127.0.0.1:1", *options)
    assert (1, True) == (code, line.startswith(f"{what}: no: "))

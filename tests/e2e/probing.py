"""The probe that this project ships, asked about a server of the tests."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.e2e.model_folder import ROOT
from tests.e2e.triton_server import TritonServer

MAX_AGE = 8  # seconds, of the heartbeat


def probe(server: TritonServer, what: str, *options: str) -> tuple[int, str]:
    """Run the probe; return its exit code and its line."""
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "scripts/probe.py",
            what,
            f"--http=127.0.0.1:{server.http_port}",
            f"--metrics=127.0.0.1:{server.metrics_port}",
            f"--max-age={MAX_AGE}",
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.strip()


def await_probe(server: TritonServer, what: str, expected: str, seconds: float = 40) -> None:
    """Wait until the probe says what is expected."""
    deadline = time.monotonic() + seconds
    while expected not in (said := probe(server, what)[1]):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)

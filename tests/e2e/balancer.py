"""A real nginx with deploy/nginx/replicas.conf, in front of replicas of a test's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.model_folder import ROOT
from tests.e2e.nginx import MAIN, PROGRAM
from tests.e2e.processes import free_ports
from tests.e2e.triton_server import LOGS

CONFIGURATION = ROOT / "deploy/nginx/replicas.conf"
KEY = "X-Prefix-Key"


@dataclass(frozen=True, slots=True)
class Replica:
    """The ports of one replica on loopback."""

    http: int
    grpc: int
    openai: int


@dataclass(frozen=True, slots=True)
class Balancer:
    """The ports of nginx on loopback."""

    http: int
    grpc: int


def configuration(replicas: Sequence[Replica], ports: Balancer) -> str:
    """Return replicas.conf with other addresses, and a line for each replica."""
    text = CONFIGURATION.read_text()
    lines = []
    for line in text.splitlines():
        if "server triton-1:" in line:
            continue
        if "server triton-0:" not in line:
            lines.append(line)
            continue
        for replica in replicas:
            changed = line.replace("triton-0:8000", f"127.0.0.1:{replica.http}")
            changed = changed.replace("triton-0:8001", f"127.0.0.1:{replica.grpc}")
            lines.append(changed.replace("triton-0:9000", f"127.0.0.1:{replica.openai}"))
    changed = "\n".join(lines) + "\n"
    for written, ours in {"listen 8080": ports.http, "listen 8081": ports.grpc}.items():
        assert 1 == changed.count(written), f"{CONFIGURATION} has not one {written}"
        changed = changed.replace(written, f"listen 127.0.0.1:{ours}")
    return changed


@contextlib.contextmanager
def balancing(folder: Path, replicas: Sequence[Replica]) -> Iterator[Balancer]:
    """Run nginx until the end of the block."""
    assert PROGRAM.exists(), f"{PROGRAM} is missing: run scripts/get_nginx.sh"
    LOGS.mkdir(parents=True, exist_ok=True)
    ports = Balancer(*free_ports(2))
    # The name that the main file includes.
    (folder / "triton_vllm.conf").write_text(configuration(replicas, ports))
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    command = [str(PROGRAM), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with (LOGS / "balancer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await(process, ports.http)
        yield ports
    finally:
        process.terminate()
        process.wait(10)


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, (LOGS / "balancer.log").read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            assert time.monotonic() < deadline, (LOGS / "balancer.log").read_text()
            time.sleep(0.1)

"""deploy/nginx/replicas.conf in a real nginx, in front of two real servers of which one is killed.

tests/e2e/test_balancer.py has the rest, with stand-ins for the replicas.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.balancer import KEY, Balancer, Replica, balancing
from tests.e2e.processes import free_ports
from tests.e2e.tiny_server import add_tiny_model
from tests.e2e.triton_server import TritonServer

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

KEYS = [f"conversation-{n}" for n in range(12)]
REPEATS = 3


def answered(server: TritonServer) -> int:
    """Return how many requests the server's model has answered, as Triton counts them."""
    pattern = r'^nv_inference_request_success\{model="vllm",version="1"\} (\d+)'
    (count,) = re.findall(pattern, server.metrics(), re.MULTILINE)
    return int(count)


def ask(ports: Balancer, key: str) -> None:
    """Send a request with a key; raise unless it is answered."""
    body = {"text_input": f"In {key}", "parameters": {"max_tokens": 1, "ignore_eos": True}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{ports.http}/v2/models/vllm/generate",
        data=json.dumps(body).encode(),
        headers={KEY: key},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert json.loads(answer.read())["text_output"]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[TritonServer]:
    """A second server, which may be killed."""
    server = TritonServer(add_tiny_model(tmp_path, {}), "second_replica", "vllm")
    yield server
    server.kill()


def test_a_key_stays_with_a_replica_until_that_is_lost(
    triton: TritonServer, other: TritonServer, tmp_path: Path
) -> None:
    """By the replicas' own counts; the one that is left answers for all."""
    servers = (triton, other)
    (nobody,) = free_ports(1)
    replicas = [Replica(server.http_port, server.grpc_port, nobody) for server in servers]
    with balancing(tmp_path, replicas) as ports:
        chosen = set()
        for key in KEYS:
            before = [answered(server) for server in servers]
            for _ in range(REPEATS):
                ask(ports, key)
            grown = [answered(s) - b for s, b in zip(servers, before, strict=True)]
            assert [0, REPEATS] == sorted(grown), key
            chosen.add(grown.index(REPEATS))
        assert {0, 1} == chosen
        before_all = answered(triton)
        other.kill()
        for key in KEYS:
            ask(ports, key)
        assert len(KEYS) == answered(triton) - before_all

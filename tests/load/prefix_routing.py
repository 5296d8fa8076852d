"""Two replicas behind nginx: prefix hits and tokens/s when requests are spread, and when keyed.

python -m tests.load.prefix_routing, by way of scripts/prefix_routing.sh.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.balancer import KEY, Replica, balancing
from tests.e2e.model_folder import CHECKPOINT, ENGINE_ARGS, add_model, check_prerequisites
from tests.e2e.triton_server import TritonServer, running

REPLICAS = 2
EXPORT_SECONDS = 2.0  # metrics_interval_seconds
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the group whose prefix it begins with."""

    group: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run. ``hit_rate`` is of the prompt tokens; seconds are a request's."""

    hit_rate: float
    tokens_a_second: float
    median_seconds: float
    requests_a_replica: tuple[int, ...]

    def __str__(self) -> str:
        """Return a line of the report."""
        shares = " and ".join(map(str, self.requests_a_replica))
        return (
            f"{100 * self.hit_rate:5.1f} % of the prompt tokens from the prefix cache, "
            f"{self.tokens_a_second:6.1f} output tokens/s, {self.median_seconds:5.2f} s a request "
            f"(median), {shares} requests"
        )


def main() -> int:
    """Run both ways, print both; return 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=12, help="prefixes in use at once")
    parser.add_argument("--requests", type=int, default=96, help="in each run")
    parser.add_argument("--prefix", type=int, default=400, help="words in a prefix")
    parser.add_argument("--tokens", type=int, default=8, help="to generate for each request")
    parser.add_argument("--at-once", type=int, default=4, help="requests under way at once")
    parser.add_argument("--kv-mb", type=int, default=128, help="KV cache of each replica")
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    options = parser.parse_args()
    check_prerequisites()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        arguments = ENGINE_ARGS | {
            "max_model_len": 2048,
            "kv_cache_memory_bytes": options.kv_mb << 20,
            "enable_log_requests": False,
            "max_num_seqs": options.at_once,
        }
        add_model(folder / "repository", engine_args=json.dumps(arguments))
        how = {"variables": {"OMP_NUM_THREADS": str(options.threads)}}
        with (
            running(folder / "repository", "replica-0", "vllm", **how) as first,
            running(folder / "repository", "replica-1", "vllm", **how) as second,
        ):
            servers = [first, second]
            replicas = [Replica(each.http_port, each.grpc_port, 1) for each in servers]
            with balancing(folder, replicas) as ports:
                print(f"{CHECKPOINT.name}, {REPLICAS} replicas, {vars(options)}", flush=True)
                measure(servers, ports.http, options, "warm-up", keyed=False, requests=8)
                for name, keyed in (("spread", False), ("keyed", True)):
                    result = measure(servers, ports.http, options, name, keyed, options.requests)
                    print(f"{name:7} {result}", flush=True)
    return 0


def questions(seed: str, groups: int, words: int, number: int) -> list[Question]:
    """Return ``number`` questions about ``groups`` prefixes that no other seed has, mixed."""
    chance = random.Random(seed)
    prefixes = {
        f"{seed}-{n}": " ".join([f"{seed} {n}:", *chance.choices(WORDS, k=words)])
        for n in range(groups)
    }
    asked = []
    for n in range(number):
        group = chance.choice(list(prefixes))
        asked.append(Question(group, f"{prefixes[group]}\nQuestion {n}:"))
    return asked


def measure(
    servers: Sequence[TritonServer],
    port: int,
    options: argparse.Namespace,
    name: str,
    keyed: bool,
    requests: int,
) -> Result:
    """Ask everything once, with a key for each prefix or with none."""
    asked = questions(name, options.groups, options.prefix, requests)
    before = [counters(server) for server in servers]
    since = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        seconds = sorted(pool.map(lambda each: ask(port, each, keyed, options.tokens), asked))
    wall = time.monotonic() - since
    time.sleep(2 * EXPORT_SECONDS)
    after = [counters(server) for server in servers]
    grown = [
        [b - a for a, b in zip(*both, strict=True)] for both in zip(before, after, strict=True)
    ]
    hits, queries, tokens, _ = (sum(each) for each in zip(*grown, strict=True))
    return Result(
        hit_rate=hits / queries,
        tokens_a_second=tokens / wall,
        median_seconds=seconds[len(seconds) // 2],
        requests_a_replica=tuple(int(each[3]) for each in grown),
    )


def ask(port: int, question: Question, keyed: bool, tokens: int) -> float:
    """Ask through nginx; return the seconds that it took. Raises where there is no answer."""
    body = {
        "text_input": question.prompt,
        "sampling_parameters": json.dumps(
            {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        ),
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/vllm/generate",
        data=json.dumps(body).encode(),
        headers={KEY: question.group} if keyed else {},
    )
    since = time.monotonic()
    with urllib.request.urlopen(request, timeout=300) as answer:
        answer.read()
    return time.monotonic() - since


def counters(server: TritonServer) -> list[float]:
    """Return hits, queries (both in tokens), generated tokens and finished requests."""
    families = [
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
    ]
    text = server.metrics()
    return [
        sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(f"{family}{{")
        )
        for family in families
    ]


if __name__ == "__main__":
    sys.exit(main())

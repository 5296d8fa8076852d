"""Many times more requests than a server admits: every one is answered or refused.

python -m tests.load.overload --requests 10000, by way of scripts/overload.sh.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.e2e.grpc_requests import generate
from tests.e2e.load import Refused, flood
from tests.e2e.tiny_server import Holdings, add_tiny_model
from tests.e2e.triton_server import TritonServer, running

MAX_REQUESTS = 32
TOKENS = 16
TIMES = 4


def main() -> int:
    """Flood a server of our own; print what came of it; return 1 if anything is amiss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as directory:
        repository = add_tiny_model(
            Path(directory),
            {"max_concurrent_requests": MAX_REQUESTS},
            max_num_seqs=8,
            enable_log_requests=False,
        )
        with running(repository, "overload", "vllm") as server:
            wrong = overload(server, requests)
    print(*(wrong or ["as it should be"]), sep="\n")
    return 1 if wrong else 0


def overload(server: TritonServer, requests: int) -> list[str]:
    """Keep four times as many requests under way as are admitted; say what is wrong."""
    truth = generate(server, "Hello", max_tokens=TOKENS, ignore_eos=True)
    at_once = TIMES * MAX_REQUESTS

    def send(number: int) -> list[str | Refused]:
        return flood(server, requests=number, at_once=at_once, prompt="Hello", max_tokens=TOKENS)

    send(min(2000, requests))  # to its usual size
    before = Holdings.of(server)
    since = time.monotonic()
    ends = send(requests)
    seconds = time.monotonic() - since
    after = Holdings.of(server)
    counts = Counter(end.error if isinstance(end, Refused) else "text" for end in ends)
    print(f"{requests} requests, {at_once} at once, {MAX_REQUESTS} admitted: {seconds:.0f} s")
    for end, count in counts.most_common():
        print(f"{count:8}  {end}")
    print(f"before: {before}\nafter:  {after}")
    wrong = before.grown_to(after, memory_mb=before.memory_mb // 10)
    if len(ends) != requests:
        wrong.append(f"{requests - len(ends)} requests were not answered")
    if different := sum(isinstance(end, str) and end != truth for end in ends):
        wrong.append(f"{different} texts differ from the greedy truth")
    if strange := [
        end for end in counts if end != "text" and "(max_concurrent_requests)" not in end
    ]:
        wrong.append(f"refused otherwise: {strange}")
    if truth != generate(server, "Hello", max_tokens=TOKENS, ignore_eos=True):
        wrong.append("the next request is not served")
    return wrong


if __name__ == "__main__":
    sys.exit(main())

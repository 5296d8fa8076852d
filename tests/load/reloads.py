"""Unload and load a model under traffic, many times: what the server holds must not grow.

python -m tests.load.reloads --times 20, by way of scripts/reloads.sh.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.e2e.tiny_server import Holdings, add_tiny_model
from tests.e2e.triton_server import TritonServer, running
from tests.load.soak import reload
from tests.load.soak_clients import guarded, slow, steady
from tests.load.soak_state import SERVING, Soak

TRAFFIC_SECONDS = 5


def main() -> int:
    """Reload on a server of our own; print what it holds each time; return 1 if that grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as directory:
        repository = add_tiny_model(
            Path(directory), SERVING, max_num_seqs=8, enable_log_requests=False
        )
        with running(repository, "reloads", "vllm") as server:
            wrong = reload_often(server, times)
    print(*(wrong or ["as it should be"]), sep="\n")
    return 1 if wrong else 0


def reload_often(server: TritonServer, times: int) -> list[str]:
    """Reload ``times`` times; say what was wrong."""
    soak = Soak(server, 600.0 * times)
    clients = [
        threading.Thread(target=guarded, args=(client, soak), daemon=True)
        for client in (steady, steady, slow)
    ]
    for client in clients:
        client.start()
    held: list[Holdings] = []
    for number in range(times):
        with soak.away():
            reload(soak)
        time.sleep(TRAFFIC_SECONDS)
        held.append(Holdings.of(server))
        print(f"{number + 1:3}  {held[-1]}", flush=True)
    soak.end = time.monotonic()
    for client in clients:
        client.join(90)
    print(*(f"{count:8}  {what}" for what, count in sorted(soak.counts.items())), sep="\n")
    # The first load is not the measure: much is imported and cached with it.
    first, last = held[min(1, times - 1)], held[-1]
    return [*soak.wrong, *first.grown_to(last, memory_mb=first.memory_mb // 10)]


if __name__ == "__main__":
    sys.exit(main())

"""Everything at once, for a long time, against a model of who is alive.

python -m tests.load.soak --minutes 30, by way of scripts/soak.sh. Clients of eleven kinds talk to
one server with a tiny model; meanwhile its engine is killed and its model reloaded. Each text is
compared with its greedy truth; an error is right only if its cause was there.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.e2e.tiny_server import Holdings, add_tiny_model
from tests.e2e.triton_server import running
from tests.load.soak_clients import CLIENTS, guarded
from tests.load.soak_state import SERVING, Soak

SAMPLE_SECONDS = 30
FAULT_SECONDS = 120  # between two faults


def faults(soak: Soak) -> None:
    """Reload the model, then kill its engine twice, and so on.

    What a reload takes back would hide what deaths leave behind, so it is looked for before the
    next one. The measure is what was held after the first reload: much is loaded only then.
    """
    after_one_death = 0
    for turn, fault in enumerate(itertools.cycle((reload, kill_engine, kill_engine))):
        if not wait(soak, FAULT_SECONDS):
            return
        descriptors = sum(p.num_fds() for p in soak.server.processes("python_backend_stub"))
        if turn == 1:
            soak.held = most_held(soak)
        elif fault is reload and turn:
            soak.compare(Holdings.of(soak.server))
            if descriptors > after_one_death + 4:
                soak.complain(f"front end: {after_one_death} descriptors, now {descriptors}")
        after_one_death = descriptors
        with soak.away():
            fault(soak)
        soak.count(fault.__name__)


def wait(soak: Soak, seconds: float) -> bool:
    """Wait; return False if the end is near, which is to find the server well."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if time.monotonic() > soak.end - 90:
            return False
        time.sleep(1)
    return True


def most_held(soak: Soak) -> Holdings:
    """Return the most that is held in some seconds: the process that tries grammars may be away."""
    held = Holdings.of(soak.server)
    for _ in range(5):
        time.sleep(2)
        held = held.most(Holdings.of(soak.server))
    return held


def kill_engine(soak: Soak) -> None:
    since = soak.server.log_size()
    (engine,) = soak.server.processes("VLLM::EngineCore")
    engine.send_signal(signal.SIGKILL)
    soak.server.await_log(": engine restarted (", since=since, seconds=180)


def reload(soak: Soak) -> None:
    soak.server.unload("vllm")
    soak.server.await_state("vllm", "UNAVAILABLE", 60)
    error = soak.server.load("vllm")
    if error:
        soak.complain(f"reload: {error}")


def main() -> int:
    """Soak a server of our own; print counts and holdings; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as directory:
        repository = add_tiny_model(
            Path(directory), SERVING, max_num_seqs=16, enable_log_requests=False
        )
        with running(repository, "soak", "vllm") as server:
            soak = Soak(server, minutes * 60)
            run(soak)
    print(f"{minutes:g} minutes: {'WRONG' if soak.wrong else 'as it should be'}")
    return 1 if soak.wrong else 0


def run(soak: Soak) -> None:
    """Start the clients, sample until the end, wait for them."""
    threads = [
        threading.Thread(target=guarded, args=(client, soak), daemon=True)
        for client in (*CLIENTS, faults)
    ]
    for thread in threads:
        thread.start()
    print(
        "minute  processes  memory MB  descriptors  shm files  GPU MB  requests  wrong", flush=True
    )
    begin = time.monotonic()
    while soak.goes_on:
        time.sleep(min(SAMPLE_SECONDS, max(0.1, soak.end - time.monotonic())))
        now = Holdings.of(soak.server)
        soak.held = soak.held or now
        minute = (time.monotonic() - begin) / 60
        total = sum(soak.counts.values())
        print(
            f"{minute:6.1f}  {now.processes:9}  {now.memory_mb:9}  {now.descriptors:11}  "
            f"{now.shared_memory_files:9}  {now.gpu_mb:6}  {total:8}  {len(soak.wrong):5}",
            flush=True,
        )
    if soak.server.process.poll() is not None:
        soak.complain(f"tritonserver ended with {soak.server.process.poll()}")
        return
    for thread in threads:
        thread.join(90)
        if thread.is_alive():
            soak.complain("a client hangs")
    soak.compare(Holdings.of(soak.server))
    print("", *(f"{count:8}  {what}" for what, count in sorted(soak.counts.items())), sep="\n")


if __name__ == "__main__":
    sys.exit(main())

"""Everything at once, for a long time, against a model of who is alive.

python -m tests.soak --minutes 30, by way of scripts/soak.sh. Clients of seven kinds talk to one
server with a tiny model; meanwhile its engine is killed and its model reloaded. Each text is
compared with its greedy truth; an error is right only if its cause was there.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.load import (
    OneByOne,
    Refused,
    flood,
    http_stream,
    infer_request,
    prompt_request,
    read_http_stream,
)
from tests.e2e.tiny_server import CONTEXT, Holdings, add_tiny_model
from tests.e2e.triton_server import Request, TritonServer, generate, running, sampling

MAX_REQUESTS = 48
PROMPTS = [f"Once upon a time number {number}" for number in range(12)]
TOKENS = 40
SAMPLE_SECONDS = 30
KILL_SECONDS = 120  # between two faults
SERVING = {
    "max_requests": MAX_REQUESTS,
    "engine_restarts": 1000,
    "drain_seconds": 5,
    "default_timeout_seconds": 60,
    "grammar_timeout_seconds": 2,
}
# What a client may hear while an engine or the model is away.
AWAY = [
    *("the engine died", "unloaded or the server stopped", "not ready", "not found"),
    *("unknown model", "is stopping", "no available versions", "unavailable"),
]


class Soak:
    """What happens, counted. The only state that the clients' threads share, under one lock."""

    def __init__(self, server: TritonServer, seconds: float) -> None:
        self.server = server
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._away: list[tuple[float, float]] = []
        self.truth = {p: generate(server, p, max_tokens=TOKENS, ignore_eos=True) for p in PROMPTS}
        self.long_truth = generate(server, "Hello", max_tokens=2000, ignore_eos=True)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.end and self.server.process.poll() is None

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def complain(self, what: str) -> None:
        with self._lock:
            self.counts["WRONG"] += 1
            self.wrong.append(f"{time.strftime('%H:%M:%S')} {what[:300]}")
            print(self.wrong[-1], flush=True)

    @contextmanager
    def away(self) -> Iterator[None]:
        """What serves is away inside the context, and for some seconds after."""
        with self._lock:
            self._away.append((time.monotonic(), float("inf")))
        try:
            yield
        finally:
            with self._lock:
                begin, _ = self._away.pop()
                self._away.append((begin, time.monotonic() + 5))

    def judge(self, kind: str, since: float, text: str, truth: str, error: str) -> None:
        """Count how a request ended; complain of a wrong text or an error without a cause."""
        with self._lock:
            was_away = any(begin < time.monotonic() and since < end for begin, end in self._away)
        if not error:
            if text == truth:
                self.count(f"{kind}: right")
            else:
                self.complain(f"{kind}: {text[-60:]!r}, not {truth[-60:]!r}")
        elif "(max_requests)" in error:
            self.count(f"{kind}: refused")
        elif was_away and any(words in error.lower() for words in AWAY):
            self.count(f"{kind}: away")
        else:
            self.complain(f"{kind}: {error}")


def streams(soak: Soak) -> Iterator[OneByOne]:
    """Yield a stream for each request, a new one now and then.

    Triton keeps a model that is being unloaded for as long as a stream that it served is open.
    """
    while soak.goes_on:
        with OneByOne(soak.server) as stream:
            until = time.monotonic() + 3
            while soak.goes_on and time.monotonic() < until:
                yield stream


def steady(soak: Soak) -> None:
    """Ask, and compare."""
    parameters = sampling(max_tokens=TOKENS, ignore_eos=True)
    for stream in streams(soak):
        prompt = random.choice(PROMPTS)
        since = time.monotonic()
        end = stream.ask(prompt_request(prompt, "", parameters))
        error = end.error if isinstance(end, Refused) else ""
        soak.judge("steady", since, "" if error else str(end), soak.truth[prompt], error)
        if error:
            time.sleep(0.5)


def cancelling(soak: Soak) -> None:
    """Leave at any moment."""
    while soak.goes_on:
        inputs = {"text_input": "Hello", "stream": True}
        inputs["sampling_parameters"] = sampling(max_tokens=CONTEXT - 10, ignore_eos=True)
        with Request(soak.server, inputs):
            time.sleep(random.uniform(0, 1))
        soak.count("cancelled")


def hurried(soak: Soak) -> None:
    """Set time limits that are too short."""
    for stream in streams(soak):
        since = time.monotonic()
        limit = random.uniform(0.05, 0.5)
        parameters = sampling(max_tokens=4000, ignore_eos=True, timeout_seconds=limit)
        end = stream.ask(prompt_request("Hello", "", parameters))
        if isinstance(end, Refused) and "its time limit" in end.error:
            soak.count("hurried: right")
        else:
            error = end.error if isinstance(end, Refused) else "no error, in spite of the limit"
            soak.judge("hurried", since, "", "", error)
            time.sleep(0.5)


def slow(soak: Soak) -> None:
    """Send, and read only after a while."""
    while soak.goes_on:
        since = time.monotonic()
        with http_stream(soak.server, "Hello", 2000) as connection:
            time.sleep(random.uniform(0, 8))
            text = read_http_stream(connection)
        whole = text == soak.long_truth
        error = "" if whole else text.removeprefix(soak.long_truth[:1000])[-300:]
        soak.judge("slow", since, text, soak.long_truth, error)
        if not whole:
            time.sleep(0.5)


def crowds(soak: Soak) -> None:
    """Come four times as many as are admitted."""
    while soak.goes_on:
        since = time.monotonic()
        at_once = 4 * MAX_REQUESTS
        for end in flood(
            soak.server, requests=400, at_once=at_once, prompt=PROMPTS[0], max_tokens=TOKENS
        ):
            error = end.error if isinstance(end, Refused) else ""
            soak.judge("crowd", since, "" if error else str(end), soak.truth[PROMPTS[0]], error)
        time.sleep(random.uniform(5, 20))


def hostile(soak: Soak) -> None:
    """Send what nobody should; each gets an error that says why."""
    bad: list[dict[str, Any]] = [
        {"text_input": b"\xff"},
        {"text_input": b"x " * 100_000},
        {"text_input": b"x", "sampling_parameters": b"[" * 50_000},
        {"text_input": b"x", "sampling_parameters": b'{"n": -1}'},
        {"text_input": b"x", "sampling_parameters": b'{"top_p": NaN}'},
        {"text_input": b"x", "sampling_parameters": b'{"structured_outputs": {"regex": "["}}'},
        {"text_input": b"x", "PROMPT": b"x"},
        {},
    ]
    for stream in streams(soak):
        end = stream.ask(infer_request(random.choice(bad), timeout=20_000_000))
        if isinstance(end, Refused):
            soak.count("hostile: refused")
        else:
            soak.complain(f"hostile: answered {end!r}")
        time.sleep(0.2)


def faults(soak: Soak) -> None:
    """Kill the engine, reload the model, in turn."""
    while True:
        for fault in (kill_engine, reload):
            until = time.monotonic() + KILL_SECONDS
            while time.monotonic() < until:
                if time.monotonic() > soak.end - 90:
                    return  # so that the end finds the server well
                time.sleep(1)
            with soak.away():
                fault(soak)
            soak.count(fault.__name__)


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
    clients: list[Callable[[Soak], None]] = [steady, steady, cancelling, hurried, slow, crowds]
    clients += [hostile, faults]
    threads = [threading.Thread(target=guarded, args=(c, soak), daemon=True) for c in clients]
    for thread in threads:
        thread.start()
    print("minute  processes  memory MB  descriptors  shm files  requests  wrong", flush=True)
    first: Holdings | None = None
    begin = time.monotonic()
    while soak.goes_on:
        time.sleep(min(SAMPLE_SECONDS, max(0.1, soak.end - time.monotonic())))
        now = Holdings.of(soak.server)
        first = first or now
        minute = (time.monotonic() - begin) / 60
        total = sum(soak.counts.values())
        print(
            f"{minute:6.1f}  {now.processes:9}  {now.memory_mb:9}  {now.descriptors:11}  "
            f"{now.shared_memory_files:9}  {total:8}  {len(soak.wrong):5}",
            flush=True,
        )
    if soak.server.process.poll() is not None:
        soak.complain(f"tritonserver ended with {soak.server.process.poll()}")
        return
    for thread in threads:
        thread.join(90)
        if thread.is_alive():
            soak.complain("a client hangs")
    assert first is not None
    for grown in first.grown_to(Holdings.of(soak.server), memory_mb=first.memory_mb // 4):
        soak.complain(grown)
    print("", *(f"{count:8}  {what}" for what, count in sorted(soak.counts.items())), sep="\n")


def guarded(client: Callable[[Soak], None], soak: Soak) -> None:
    """Run a client again when its connection fails, as it may while the server is away."""
    while soak.goes_on:
        try:
            client(soak)
        except Exception as error:
            soak.complain(f"{client.__name__}: {type(error).__name__}: {error}")
            time.sleep(1)
        else:
            return


if __name__ == "__main__":
    sys.exit(main())

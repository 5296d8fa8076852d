"""What a soak knows: the truth of each prompt, what was away when, and what went wrong."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.grpc_requests import ask, generate, sampling
from tests.e2e.tiny_server import Holdings
from tests.e2e.triton_server import TritonServer

MAX_REQUESTS = 48
PROMPTS = [f"Once upon a time number {number}" for number in range(12)]
TOKENS = 40
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "I say"}]
TURN = {
    "messages": json.dumps(MESSAGES),
    "continue_final_message": True,
    "add_generation_prompt": False,
    "sampling_parameters": sampling(max_tokens=TOKENS, ignore_eos=True),
}
SERVING = {
    "max_concurrent_requests": MAX_REQUESTS,
    "max_engine_restarts": 1000,
    "drain_timeout_seconds": 5,
    "default_timeout_seconds": 300,  # beyond the longest answer, on a busy machine too
    "grammar_compile_timeout_seconds": 2,
}
# What a client may hear while an engine or the model is away.
AWAY = [
    *("the engine died", "unloaded or the server stopped", "not ready", "not found"),
    *("unknown model", "is stopping", "no available versions", "unavailable"),
]


class Soak:
    """What happens, counted. The only state that the clients' threads share, under one lock.

    ``held`` is what the server held when all was well, the measure of what it holds later.
    """

    def __init__(self, server: TritonServer, seconds: float) -> None:
        self.server = server
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.held: Holdings | None = None
        self._lock = threading.Lock()
        self._away: list[tuple[float, float]] = []
        self.truth = {p: generate(server, p, max_tokens=TOKENS, ignore_eos=True) for p in PROMPTS}
        (turn,) = ask(server, TURN)
        self.turn_truth = "".join(turn.outputs["text_output"])
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

    def compare(self, now: Holdings) -> None:
        """Complain of what has grown since ``held``."""
        assert self.held is not None
        for grown in self.held.grown_to(now, memory_mb=self.held.memory_mb // 4):
            self.complain(grown)

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
        elif "(max_concurrent_requests)" in error:
            self.count(f"{kind}: refused")
        elif was_away and any(words in error.lower() for words in AWAY):
            self.count(f"{kind}: away")
        else:
            self.complain(f"{kind}: {error}")

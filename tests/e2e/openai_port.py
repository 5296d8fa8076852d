"""What the tests of the OpenAI-compatible port share: its settings, its clients, its metrics."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.model_folder import ENGINE_ARGS
from tests.e2e.triton_server import TritonServer

PERIOD = 0.2  # seconds between two exports of metrics
KEY = "sk-the-second"
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"  # as in docs/openai.md


@dataclass(frozen=True, slots=True)
class Served:
    """A server whose model `vllm` has an OpenAI-compatible port, and a client of that port."""

    triton: TritonServer
    port: int
    client: openai.OpenAI


def engine_args(
    openai_settings: dict[str, Any], serving: Mapping[str, Any] | None = None, **changes: Any
) -> str:
    """Return a vllm_engine_args.json with the port switched on."""
    serving = {"metrics_interval_seconds": PERIOD, "openai": openai_settings, **(serving or {})}
    return json.dumps({**ENGINE_ARGS, "serving": serving, **changes})


def client_of(port: int, key: str = "unused", **options: Any) -> openai.OpenAI:
    """Return OpenAI's client of a port, which does not hide an error by trying again."""
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120, **options
    )


def complete(client: openai.OpenAI, tokens: int = 2, **how: Any) -> Any:
    """Request this many tokens."""
    how = {"prompt": "One, two,"} | how
    return client.completions.create(
        model="tiny", max_tokens=tokens, extra_body={"ignore_eos": True}, **how
    )


@contextlib.contextmanager
def streams(port: int, number: int, tokens: int) -> Iterator[list[Any]]:
    """Begin so many streams, each on a connection of its own; each has had its first chunk.

    All at once: on a busy machine one may begin many seconds after another.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(number) as pool:
        clients = [stack.enter_context(client_of(port)) for _ in range(number)]

        def begin(client: openai.OpenAI) -> Any:
            stream = complete(client, tokens, stream=True)
            next(stream)
            return stream

        begun = list(pool.map(begin, clients))
        for stream in begun:
            stack.enter_context(stream)
        yield begun


def complete_some(port: int, number: int) -> list[int]:
    """Ask so often, each time on a connection of its own; return the numbers of tokens."""

    def one(_: int) -> int:
        with client_of(port) as client:
            return int(complete(client).usage.completion_tokens)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(number)))


def is_open(port: int) -> bool:
    """Return whether a process listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def metric(server: TritonServer, name: str, **labels: str) -> float:
    """Return a metric of Triton, summed over all its other labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(PERIOD)

"""The product's send path without an engine: what Triton's transport alone can carry.

A streamed request is answered by ``max_tokens`` deltas of one word. All requests under way get a
delta in turn, as from an engine's step, but as fast as the sender threads take them: the package
``triton_vllm`` (copied beside this file by bench/compare.py) decodes, merges nothing, and sends.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import triton_python_backend_utils as pb_utils

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.limits.http_backlog import watch_http_backlog
from triton_vllm.protocol.decode import Parser, decode
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.fields import ParameterValidator
from triton_vllm.protocol.requests import EngineOptions
from triton_vllm.protocol.schema import GENERATION_SCHEMAS
from triton_vllm.protocol.stream import ResponseStream, SenderPool

_WORD = Delta((" word",), 1)
_LAST_WORD = Delta((" word",), 1, final=True)


@dataclass(frozen=True, slots=True)
class Sampling:
    """As much of vLLM's ``SamplingParams`` as is used here."""

    max_tokens: int
    n: int = 1
    num_logprobs: None = None


class SamplingParser:
    """In the place of the parser that needs vLLM."""

    schemas = GENERATION_SCHEMAS
    parameters = ParameterValidator({"max_tokens": int})

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Sampling, EngineOptions]:
        """Return the number of tokens asked for."""
        return Sampling(int(given["max_tokens"])), EngineOptions()


class TritonPythonModel:
    """One front end with its sender threads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the threads."""
        config = json.loads(args["model_config"])
        parameters = config["parameters"]
        threads = int(parameters["SENDER_THREADS"]["string_value"])
        self._handing_over: SimpleQueue[Callable[[], None]] = SimpleQueue()
        front_ends = config["instance_group"][0]["count"]
        backlog = watch_http_backlog(ServerOptions.read(), front_ends, args["model_name"])
        put = self._handing_over.put
        self._responses = SenderPool(pb_utils, threads, 1, put, args["model_name"], backlog)
        self._sampling: Parser = SamplingParser()
        self._new: SimpleQueue[tuple[ResponseStream, int] | None] = SimpleQueue()
        self._steps = threading.Thread(target=self._run, daemon=True)
        self._steps.start()

    def execute(self, requests: list[Any]) -> None:
        """Accept requests; the responses follow on their own."""
        for request in requests:
            sender = request.get_response_sender()
            stream = self._responses.open(sender, decode(request, self._sampling))
            assert stream.request is not None, "it was opened with one"
            words = stream.request.sampling_params.max_tokens
            if stream.request.stream:
                self._new.put((stream, words))
            else:
                stream.send(Delta((" word" * words,), words, final=True))
                self._hand_over()

    def _run(self) -> None:
        """Put one delta of each stream into the queues, again and again."""
        left: dict[ResponseStream, int] = {}
        while True:
            while not left or not self._new.empty():
                new = self._new.get()
                if new is None:
                    return
                left[new[0]] = new[1]
            for stream, words in list(left.items()):
                if words > 1:
                    left[stream] = words - 1
                    stream.send(_WORD)
                else:
                    del left[stream]
                    stream.send(_LAST_WORD)
            self._hand_over()

    def _hand_over(self) -> None:
        """Wake the sender threads, as the event loop does after each step of an engine."""
        with contextlib.suppress(Empty):
            while True:
                self._handing_over.get_nowait()()

    def finalize(self) -> None:
        """Send what is left to send; stop the threads."""
        self._new.put(None)
        self._steps.join(5)
        self._responses.stop(timeout=5.0)

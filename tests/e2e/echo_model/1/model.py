"""A stand-in for the language model: it answers each prompt with the prompt's own words.

It speaks the served model's protocol (decoupled, deltas when streaming, exactly one FINAL flag),
so a client can be tested against the real Triton without vLLM. A prompt may begin with a command
that ends in a colon:

    wait 0.5: one two    waits half a second before the first word
    slow 0.2: one two    waits a fifth of a second before every word
    error: bad prompt    answers the error "bad prompt"
    break: one two       answers the words, then an error
    hang: one two        answers the words, but the FINAL flag only once it is cancelled
    silent: one two      answers the FINAL flag alone
    parameters: x        answers the sampling parameters as JSON

The sampling parameter `n` asks for n sequences; sequence i has its words repeated i + 1 times.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

POLL_SECONDS = 0.02


class Cancelled(Exception):
    """The client went away."""


class Answer:
    """One request: its inputs, and the thread that answers it."""

    def __init__(self, request: Any) -> None:
        self.id = request.request_id()
        self.request = request
        self.sender = request.get_response_sender()
        prompt = self._value("text_input", b"").decode()
        command, colon, words = prompt.partition(": ")
        self.prompt = prompt
        self.command, _, argument = command.partition(" ") if colon else ("", "", "")
        self.seconds = float(argument or 0)
        self.words = (words if colon else prompt).split(" ")
        self.stream = bool(self._value("stream", False))
        self.exclude_input = bool(self._value("exclude_input_in_output", False))
        self.counted = bool(self._value("return_num_output_tokens", False))
        self.parameters = json.loads(self._value("sampling_parameters", b"{}"))

    def _value(self, name: str, default: Any) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        return default if tensor is None else tensor.as_numpy().reshape(-1)[0]

    def run(self) -> None:
        try:
            self._answer()
        except Cancelled:
            pb_utils.Logger.log_info(f"echo_model: request {self.id} cancelled")
        except Exception as error:
            self.sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self) -> None:
        if self.stream and not self.exclude_input:
            raise ValueError("exclude_input_in_output must be true when streaming")
        if self.command == "error":
            raise ValueError(" ".join(self.words))
        if self.command == "silent":
            return
        if self.command == "parameters":
            self.words = [json.dumps(self.parameters, sort_keys=True)]
        self._sleep(self.seconds if self.command == "wait" else 0)
        self._send_words()
        if self.command == "break":
            raise ValueError("broken off")
        if self.command == "hang":
            self._sleep(float("inf"))

    def _send_words(self) -> None:
        said: list[str] = []
        for word in self.words:
            self._sleep(self.seconds if self.command == "slow" else 0)
            said.append(f" {word}")
            if self.stream:
                self._send(said[-1], tokens=1)
        if not self.stream:
            self._send("".join(said), tokens=len(said))

    def _send(self, text: str, tokens: int) -> None:
        before = "" if self.exclude_input else self.prompt
        sequences = range(1, self.parameters.get("n", 1) + 1)
        texts = [(before + text * repeats).encode() for repeats in sequences]
        tensors = [pb_utils.Tensor("text_output", np.array(texts, dtype=np.object_))]
        if self.counted:
            counts = np.array([tokens] * len(texts), dtype=np.uint32)
            tensors.append(pb_utils.Tensor("num_output_tokens", counts))
        self.sender.send(pb_utils.InferenceResponse(tensors))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.request.is_cancelled():
                raise Cancelled
            time.sleep(POLL_SECONDS)


class TritonPythonModel:
    """The Python backend's interface: a thread for each request."""

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            threading.Thread(target=Answer(request).run, daemon=True).start()

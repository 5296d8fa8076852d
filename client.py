#!/usr/bin/env python3
"""Send the prompts of a file to a language model behind Triton and store its answers.

Each of --concurrency workers sends one request at a time, each on a gRPC stream of its own. So an
error of a stream is the error of its request, --stream-timeout applies to one request, and
cancelling a stream cancels one request. The client closes its half of the stream after the request.
Triton ends the other half with OK only after the model's FINAL flag, so the end of the stream shows
that the answer is complete. (Triton could also send an empty final response, but tritonclient's aio
client cannot ask for it.)

The tutorial's three lines go to stdout; statistics, failures and the progress bar go to stderr.
Exit codes: 0 PASS; 1 the server or a request failed; 2 usage, prompts or results file;
130 and 143 after SIGINT and SIGTERM, with the running requests cancelled at the server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import signal
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO

try:
    import grpc
    import numpy as np
    import tritonclient.grpc.aio as triton
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"client.py: {missing}: install it with pip install 'tritonclient[grpc]' numpy tqdm")

AFTER_TEXT = "\n\n=========\n\n"  # the tutorial's separator, after each id's text
BETWEEN_SEQUENCES = "\n\n---------\n\n"  # between one id's texts, when `n` asks for several
SERVER_CHECK = {"client_timeout": 10.0}  # seconds
STARTED_PER_WORKER = 4  # see OrderedResults


class Unusable(Exception):
    """The run cannot continue; the message is the line for the user."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestFailed(Exception):
    """One request got no text or no final response. The other requests continue."""


class OrderedResults:
    """Write texts in the order of ids, whatever the order of arrival, in bounded memory.

    At most `window` ids are started and not yet written, so a slow request holds back at most that
    many texts. A window of several times the number of workers keeps the workers busy meanwhile. An
    id without a text gets an empty entry, so the n-th entry belongs to the n-th id.
    """

    def __init__(self, file: TextIO, first_id: int, window: int) -> None:
        self._file = file
        self._next_id = first_id
        self._waiting: dict[int, str] = {}
        self._room = asyncio.Semaphore(window)

    async def room_for_one(self) -> None:
        """Wait until one more id may start. Call `put` once for each started id."""
        await self._room.acquire()

    def put(self, request_id: int, text: str) -> None:
        """Store a started id's text, then write all texts without an unfinished id before them."""
        self._waiting[request_id] = text
        while self._next_id in self._waiting:
            self._write(self._waiting.pop(self._next_id))
            self._room.release()

    def close_gaps(self) -> None:
        """Write the texts that wait for unfinished ids. Call it after an interrupted run."""
        while self._waiting:
            self._write(self._waiting.pop(self._next_id, ""))

    def _write(self, text: str) -> None:
        self._next_id += 1
        self._file.write(text + AFTER_TEXT)
        self._file.flush()


class Durations:
    """Durations in seconds, and their quantiles."""

    def __init__(self) -> None:
        self._seconds = array("d")

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._seconds.append(seconds)

    def quantile(self, q: float) -> float:
        """Return the q-quantile in seconds, or NaN when nothing was counted."""
        return float(np.quantile(self._seconds, q)) if self._seconds else math.nan

    def __str__(self) -> str:
        p50, p99 = self.quantile(0.5) * 1e3, self.quantile(0.99) * 1e3
        return f"p50 {p50:.3g} ms p99 {p99:.3g} ms"


@dataclass(slots=True)
class Figures:
    """What the run measured so far."""

    passed: int = 0
    failed: int = 0
    messages: int = 0  # those with text; one may carry several tokens
    tokens: int | None = None  # None: this model does not report them
    first_text: Durations = field(default_factory=Durations)
    between_texts: Durations = field(default_factory=Durations)

    def count_message(self, first: bool, seconds: float) -> None:
        """Count a message with text, `seconds` after the previous one or, if first, the request."""
        self.messages += 1
        (self.first_text if first else self.between_texts).add(seconds)

    def summary(self, seconds: float, streaming: bool) -> str:
        """Return the figures as one line."""
        line = f"{self.passed + self.failed} requests ({self.failed} failed) in {seconds:.2f} s, "
        line += f"{self.passed / seconds:.1f} requests/s, {self.messages / seconds:.1f} messages/s"
        if self.tokens is not None:
            line += f", {self.tokens / seconds:.1f} tokens/s"
        if not streaming:
            return f"{line}; whole answer {self.first_text}"
        return f"{line}; first token {self.first_text}; between messages {self.between_texts}"


class Run:
    """One run over the prompts: check the model, then send, receive and write."""

    def __init__(self, flags: argparse.Namespace, prompts: Sequence[str]) -> None:
        self.flags = flags
        self.prompts = prompts
        self.total = flags.iterations * len(prompts)
        self.figures = Figures()
        # The model rejects a stream that repeats the prompt, so the client writes the prompt.
        self.client_writes_prompt = flags.streaming_mode and not flags.exclude_inputs_in_outputs
        exclude_input = flags.streaming_mode or flags.exclude_inputs_in_outputs
        self.common_inputs = [
            tensor("stream", "BOOL", flags.streaming_mode),
            tensor("exclude_input_in_output", "BOOL", exclude_input),
            tensor("sampling_parameters", "BYTES", json.dumps(sampling_parameters(flags)).encode()),
        ]

    async def __call__(self) -> None:
        """Get an answer to every prompt. Raise Unusable if the server or the model cannot."""
        self.client = triton.InferenceServerClient(self.flags.url, verbose=self.flags.verbose)
        try:
            await self._check_model()
            with open(self.flags.results_file, "w", encoding="utf-8") as file:
                print(f"Storing results into `{self.flags.results_file}`...", flush=True)
                await self._answer_all(file)
        finally:
            await self.client.close()

    async def _check_model(self) -> None:
        url, model = self.flags.url, self.flags.model
        try:
            ready = await self.client.is_model_ready(model, **SERVER_CHECK)
            metadata = await self.client.get_model_metadata(model, **SERVER_CHECK)
        except triton.InferenceServerException as error:
            raise Unusable(f"{url}: {one_line(error.message())}", 1) from error
        if not ready:
            raise Unusable(f"{url}: model `{model}` is not ready", 1)
        inputs = [each.name for each in metadata.inputs]
        if "text_input" not in inputs:
            raise Unusable(f"{url}: model `{model}` has inputs {inputs}, not `text_input`", 1)
        if "return_num_output_tokens" in inputs:
            self.figures.tokens = 0
            self.common_inputs.append(tensor("return_num_output_tokens", "BOOL", True))

    async def _answer_all(self, file: TextIO) -> None:
        """Run all workers. If interrupted, cancel them and write the complete texts."""
        workers = min(self.flags.concurrency, self.total)
        results = OrderedResults(file, self.flags.offset, STARTED_PER_WORKER * workers)
        ids = range(self.flags.offset, self.flags.offset + self.total)
        requests = zip(ids, itertools.cycle(self.prompts))
        started = time.perf_counter()
        with tqdm(total=self.total, unit="request", disable=None) as bar:
            work = [self._work(requests, results, bar) for _ in range(workers)]
            tasks = [asyncio.create_task(each) for each in work]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                results.close_gaps()
        seconds = time.perf_counter() - started
        print(self.figures.summary(seconds, self.flags.streaming_mode), file=sys.stderr)

    async def _work(
        self, requests: Iterator[tuple[int, str]], results: OrderedResults, bar: tqdm[Any]
    ) -> None:
        while True:
            await results.room_for_one()
            request = next(requests, None)
            if request is None:
                return
            try:
                text = await self._generate(*request)
                self.figures.passed += 1
            except RequestFailed as failure:
                text = ""
                self.figures.failed += 1
                bar.write(f"request {request[0]}: {failure}", file=sys.stderr)
            results.put(request[0], text)
            bar.update()

    async def _generate(self, request_id: int, prompt: str) -> str:
        """Return one prompt's answer, or raise RequestFailed. Leaving early cancels the request."""
        inputs = [tensor("text_input", "BYTES", prompt.encode()), *self.common_inputs]
        request = {"model_name": self.flags.model, "request_id": str(request_id), "inputs": inputs}
        sequences: dict[int, bytearray] = {}
        before, first = time.perf_counter(), True
        responses = self.client.stream_infer(only(request), self.flags.stream_timeout)
        try:
            async for result, error in responses:
                if error is not None:
                    raise RequestFailed(one_line(error.message()))
                deltas = elements(result, "text_output")
                for index, delta in enumerate(deltas):
                    sequences.setdefault(index, bytearray()).extend(delta)
                if any(deltas):
                    now = time.perf_counter()
                    self.figures.count_message(first, now - before)
                    before, first = now, False
                if self.figures.tokens is not None:
                    self.figures.tokens += int(sum(elements(result, "num_output_tokens")))
        except grpc.RpcError as error:
            self._raise_for(error)
        finally:
            responses.cancel()
        if not sequences:
            raise RequestFailed("a final response without text")
        prefix = prompt if self.client_writes_prompt else ""
        texts = [text.decode(errors="replace") for text in sequences.values()]
        return BETWEEN_SEQUENCES.join(prefix + text for text in texts)

    def _raise_for(self, error: Any) -> NoReturn:
        """Raise RequestFailed, or Unusable if the server is gone, which fails all requests."""
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            late = f"not complete within {self.flags.stream_timeout:g} s (--stream-timeout)"
            raise RequestFailed(late) from error
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            raise Unusable(f"{self.flags.url}: {one_line(error.details())}", 1) from error
        raise RequestFailed(f"{error.code().name}: {one_line(error.details())}") from error


async def only(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Yield one request, then end, which closes the client's half of the stream."""
    yield request


def tensor(name: str, datatype: str, value: bytes | bool) -> Any:
    """Return an input of shape [1]."""
    made = triton.InferInput(name, [1], datatype)
    made.set_data_from_numpy(np.array([value], dtype=bool if datatype == "BOOL" else np.object_))
    return made


def elements(result: Any, name: str) -> list[Any]:
    """Return an output's elements, none if the response lacks it."""
    array = result.as_numpy(name)
    return [] if array is None else list(array.reshape(-1))


def one_line(message: str | None) -> str:
    """Fold a server's message into one line."""
    return " ".join((message or "no reason given").split())


def read_prompts(path: str) -> list[str]:
    """Return the file's lines, stripped, without blank ones; raise Unusable if there are none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            prompts = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise Unusable(f"{path}: not UTF-8 text (at byte {error.start})", 2) from error
    if not prompts:
        raise Unusable(f"{path}: no prompts, only blank lines", 2)
    return prompts


def sampling_parameters(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the flags' sampling parameters, overridden by --sampling-parameters."""
    named = ("max_tokens", "temperature", "top_p", "seed", "stop", "ignore_eos")
    given = {name: getattr(flags, name) for name in named if getattr(flags, name) is not None}
    return {**given, **flags.sampling_parameters}


def json_object(text: str) -> dict[str, Any]:
    """Parse a flag's JSON object."""
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if isinstance(value, dict):
        return value
    raise argparse.ArgumentTypeError(f'not a JSON object like {{"top_k": 5}}: {text}')


def positive(number: type) -> Any:
    """Return a parser of numbers of that type which are finite and greater than 0."""

    def parse(text: str) -> Any:
        if not 0 < (value := number(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"must be greater than 0: {text}")
        return value

    parse.__name__ = number.__name__  # argparse's error has this name if the text is no number
    return parse


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Print what was wrong and exit with 2."""
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's flags; exit with 2 and a line when they are wrong."""
    parser = OneLineParser(description=(__doc__ or "").partition("\n")[0])
    flag = parser.add_argument
    flag("-u", "--url", default="localhost:8001", help="Triton's gRPC address (%(default)s)")
    flag("-m", "--model", default="vllm", help="model name (%(default)s)")
    flag(
        "--iterations", type=positive(int), default=1, help="passes over the prompts (%(default)s)"
    )
    flag("--input-prompts", default="prompts.txt", help="a prompt per line (%(default)s)")
    flag("--results-file", default="results.txt", help="where the texts go (%(default)s)")
    flag("--offset", type=int, default=0, help="id of the first request (%(default)s)")
    flag("-t", "--stream-timeout", type=positive(float), help="seconds per request (no limit)")
    flag("-s", "--streaming-mode", action="store_true", help="receive texts in pieces")
    flag("--exclude-inputs-in-outputs", action="store_true", help="store texts without prompts")
    flag("-v", "--verbose", action="store_true", help="print every gRPC message")
    # Below vLLM's usual max_num_seqs (256), so requests are batched but seldom queue there.
    flag("--concurrency", type=positive(int), default=64, help="concurrent requests (%(default)s)")
    flag("--max-tokens", type=positive(int), default=100, help="length of an answer (%(default)s)")
    flag("--temperature", type=float, default=0.1, help="0 is greedy (%(default)s)")
    flag("--top-p", type=float, default=0.95, help="(%(default)s)")
    flag("--seed", type=int, help="seed of the sampling, for repeatable texts")
    flag("--stop", action="append", metavar="TEXT", help="text that ends an answer; repeatable")
    flag("--ignore-eos", action="store_true", default=None, help="always generate --max-tokens")
    more = 'further parameters as a JSON object, which overrides the flags: {"n": 2}'
    flag("--sampling-parameters", type=json_object, default={}, metavar="JSON", help=more)
    return parser.parse_args(arguments)


async def until_signal(run: Run) -> int:
    """Await the run; return 0, or the number of the signal that cancelled it."""
    loop, task, received = asyncio.get_running_loop(), asyncio.ensure_future(run()), [0]

    def stop(number: int) -> None:
        received[0] = number
        task.cancel()
        signal.signal(number, signal.SIG_DFL)  # a second signal ends a run that hangs

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received[0]:
            raise
    return received[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the client and return its exit code."""
    flags = parse_flags(arguments)
    try:
        print(f"Loading inputs from `{flags.input_prompts}`...", flush=True)
        run = Run(flags, read_prompts(flags.input_prompts))
        received = asyncio.run(until_signal(run))
    except Unusable as error:
        exit_code, reason = error.exit_code, str(error)
    except OSError as error:
        unnamed = "stdout" if isinstance(error, BrokenPipeError) else flags.results_file
        exit_code, reason = 2, f"{error.filename or unnamed}: {error.strerror}"
    else:
        answered = f"{run.figures.passed} of {run.total} answered, the rest cancelled"
        exit_code = 128 + received if received else int(run.figures.failed > 0)
        reason = f"{signal.Signals(received).name}: {answered}" if received else ""
    if reason:
        print(f"client.py: {reason}", file=sys.stderr)
    if exit_code in (0, 1):
        print("PASS: vLLM example" if exit_code == 0 else "FAIL: vLLM example")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())

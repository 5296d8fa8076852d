"""The clients of a soak: each does one thing, over and over, until the end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.e2e.grpc_requests import ask, sampling
from tests.e2e.load import (
    Connection,
    Refused,
    flood,
    http_stream,
    infer_request,
    prompt_request,
    read_http_stream,
    running_client,
)
from tests.e2e.tiny_server import CONTEXT
from tests.load.soak_state import MAX_REQUESTS, PROMPTS, TOKENS, TURN, Soak


def steady(soak: Soak) -> None:
    """Ask, and compare."""
    parameters = sampling(max_tokens=TOKENS, ignore_eos=True)
    with Connection(soak.server) as connection:
        while soak.goes_on:
            prompt = random.choice(PROMPTS)
            since = time.monotonic()
            end = connection.ask(prompt_request(prompt, parameters))
            error = end.error if isinstance(end, Refused) else ""
            soak.judge("steady", since, "" if error else str(end), soak.truth[prompt], error)
            if error:
                time.sleep(0.5)


def cancelling(soak: Soak) -> None:
    """Leave at any moment."""
    parameters = sampling(max_tokens=CONTEXT - 10, ignore_eos=True)
    with Connection(soak.server) as connection:
        while soak.goes_on:
            responses = connection.send(prompt_request("Hello", parameters, stream=True))
            time.sleep(random.uniform(0, 1))
            responses.cancel()
            soak.count("cancelled")


def hurried(soak: Soak) -> None:
    """Set time limits that are too short."""
    with Connection(soak.server) as connection:
        while soak.goes_on:
            since = time.monotonic()
            limit = random.uniform(0.05, 0.5)
            parameters = sampling(max_tokens=4000, ignore_eos=True, timeout_seconds=limit)
            end = connection.ask(prompt_request("Hello", parameters))
            if isinstance(end, Refused) and "request timed out" in end.error:
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
    """Send malformed requests; each gets an error with the reason."""
    bad: list[dict[str, Any]] = [
        {"text_input": b"\xff"},
        {"text_input": b"x " * 100_000},
        {"text_input": b"x", "sampling_parameters": b"[" * 50_000},
        {"text_input": b"x", "sampling_parameters": b'{"n": -1}'},
        {"text_input": b"x", "sampling_parameters": b'{"top_p": NaN}'},
        {"text_input": b"x", "sampling_parameters": b'{"structured_outputs": {"regex": "["}}'},
        {"text_input": b"x", "sampling_parameters": rb'{"\ud83d": 1}'},
        {"text_input": b"x", "sampling_parameters": rb'{"lora_name": "\ud83d"}'},
        {"text_input": b"x", "sampling_parameters": rb'{"structured_outputs": {"\ud83d": 1}}'},
        {"messages": rb'[{"role": "\ud83d", "content": "x"}]'},
        {"text_input": b"x", "PROMPT": b"x"},
        {},
    ]
    with Connection(soak.server) as connection:
        while soak.goes_on:
            end = connection.ask(infer_request(random.choice(bad), timeout=20_000_000))
            if isinstance(end, Refused):
                soak.count("hostile: refused")
            else:
                soak.complain(f"hostile: answered {end!r}")
            time.sleep(0.2)


def vanishing(soak: Soak) -> None:
    """Die by kill -9 in the middle of a stream. A process of its own, which takes a second."""
    while soak.goes_on:
        since = time.monotonic()
        client, error = running_client(soak.server)
        time.sleep(random.uniform(0, 1))
        client.kill()
        client.communicate()
        if error:
            soak.judge("vanishing", since, "", "", error)
        else:
            soak.count("vanishing")
        time.sleep(random.uniform(5, 15))


def grammars(soak: Soak) -> None:
    """Ask for one of two words, each time with a grammar that the server has not seen."""
    while soak.goes_on:
        words = {word: word for word in ("yes", f"no{random.randrange(10**6):06}")}
        since = time.monotonic()
        with Connection(soak.server) as connection:
            parameters = sampling(structured_outputs={"choice": list(words)})
            end = connection.ask(prompt_request("Yes or no?", parameters))
        error = end.error if isinstance(end, Refused) else ""
        text = "" if error else str(end)
        soak.judge("grammars", since, text, words.get(text, "one of the words"), error)
        time.sleep(random.uniform(5, 15))


def schemas(soak: Soak) -> None:
    """Ask for a number by a schema that no number matches: the library ignores half of it."""
    while soak.goes_on:
        number = random.randrange(10**6)
        schema = {"enum": [number], "not": {"const": number}}
        inputs = {
            "text_input": "A number:",
            "exclude_input_in_output": True,
            "return_schema_errors": True,
            "sampling_parameters": sampling(max_tokens=TOKENS, structured_outputs={"json": schema}),
        }
        since = time.monotonic()
        outputs, error = last_of(soak, inputs)
        texts = ["".join(outputs.get(name, ())) for name in ("text_output", "schema_errors")]
        found = [each["keyword"] for each in json.loads(texts[1] or "[]")]
        soak.judge("schemas", since, f"{texts[0]} {found}", f"{number} ['not']", error)
        time.sleep(random.uniform(2, 8))


def beams(soak: Soak) -> None:
    """Search for two texts: many requests of the engine's, which end with the one."""
    inputs = {
        "text_input": PROMPTS[0],
        "exclude_input_in_output": True,
        "sampling_parameters": sampling(use_beam_search=True, n=2, max_tokens=8, ignore_eos=True),
    }
    while soak.goes_on:
        since = time.monotonic()
        outputs, error = last_of(soak, inputs)
        found = len(set(outputs.get("text_output", ())))
        soak.judge("beams", since, f"{found} texts", "2 texts", error)
        time.sleep(random.uniform(2, 8))


def prefill(soak: Soak) -> None:
    """Have an assistant's turn continued."""
    while soak.goes_on:
        since = time.monotonic()
        outputs, error = last_of(soak, TURN)
        text = "".join(outputs.get("text_output", ()))
        soak.judge("prefill", since, text, soak.turn_truth, error)
        time.sleep(random.uniform(0.5, 4))


def last_of(soak: Soak, inputs: dict[str, Any]) -> tuple[Mapping[str, Sequence[str]], str]:
    """Return the outputs of the one response to a request, and its error."""
    response = ask(soak.server, inputs, seconds=330)[-1]
    return response.outputs, response.error


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


CLIENTS: list[Callable[[Soak], None]] = [
    *(steady, steady, cancelling, vanishing, hurried, slow, crowds, hostile, grammars),
    *(schemas, beams, prefill),
]

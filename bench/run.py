#!/usr/bin/env python3
"""Put a load on a language-model server and report its throughput and latency.

    bench/run.py --url 127.0.0.1:8001 --protocol triton-grpc --model vllm --streams 64
    bench/run.py --url 127.0.0.1:8000 --protocol openai --model m --rate 20 --requests 500
    bench/run.py --protocol triton-http --null     measure the client itself

By default the loop is closed: each of --streams workers sends one request at a time. With --rate
the loop is open: the client sends this many requests per second, however long the answers take, and
the times of a request count from the moment at which it was due.
The figures go to stdout, with --json as JSON; progress goes to stderr.
Exit codes: 0; 1 if a request failed or the server does not answer; 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen import workload
from loadgen.clients import Clients
from loadgen.figures import Figures, figures
from loadgen.load import PROTOCOLS, ClientError, Load, Prompt, Target
from loadgen.null_server import null_server
from loadgen.progress import bar

_PORTS = {"triton-grpc": 8001, "triton-http": 8000, "openai": 8000}
_BUSY = 0.8  # CPUs of one client process; above this the client itself may cause the latencies


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load; return the exit code."""
    flags = parse_flags(arguments)
    try:
        prompts = prompts_of(flags)
    except workload.WorkloadError as error:
        return complain(str(error), 2)
    with contextlib.ExitStack() as stack:
        address = flags.url or f"127.0.0.1:{_PORTS[flags.protocol]}"
        if flags.null:
            address = stack.enter_context(null_server(flags.protocol, flags.processes))
        clients = stack.enter_context(Clients(min(flags.processes, flags.streams)))
        load = load_of(flags, address, prompts)
        try:
            if flags.warmup:
                clients.run(warm_up_of(load, flags.warmup))
            with bar(len(prompts), "requests") as progress:
                found = figures(clients.run(load, progress))
        except (OSError, ClientError) as error:
            return complain(f"{address}: {error}", 1)
    print(json.dumps(report(flags, found)) if flags.json else text(found, flags.stream))
    if found.client_cpu > _BUSY:
        complain("the client is busy itself: give it more --processes, or its own machine", 0)
    return int(found.failed > 0)


def complain(line: str, code: int) -> int:
    """Print a line on stderr; return ``code``."""
    print(f"run.py: {line}", file=sys.stderr)
    return code


def prompts_of(flags: argparse.Namespace) -> tuple[Prompt, ...]:
    """Return the requests that the flags describe."""
    tokenizer = workload.tokenizer_of(flags.tokenizer)
    number = flags.requests or 4 * flags.streams
    if flags.dataset == "synthetic":
        return workload.synthetic(
            tokenizer,
            number,
            flags.input_tokens,
            flags.output_tokens or 128,
            shared_prefix=flags.shared_prefix,
            seed=flags.seed,
        )
    path = Path(flags.dataset)
    if path.suffix == ".json":
        return workload.sharegpt(
            path, tokenizer, number, output_tokens=flags.output_tokens, seed=flags.seed
        )
    return workload.lines(path, number, flags.output_tokens or 128)


def load_of(flags: argparse.Namespace, address: str, prompts: tuple[Prompt, ...]) -> Load:
    """Return the load that the flags describe."""
    sampling: dict[str, Any] = {"temperature": flags.temperature, "ignore_eos": True}
    target = Target(
        address,
        flags.protocol,
        flags.model,
        flags.stream,
        sampling | flags.sampling_parameters,
        flags.count_tokens,
    )
    return Load(
        target,
        prompts,
        flags.streams,
        flags.rate,
        not flags.fixed_rate,
        flags.seconds,
        flags.patience,
        flags.seed,
    )


def warm_up_of(load: Load, number: int) -> Load:
    """Return a short load with some of the prompts of ``load``."""
    prompts = tuple(Prompt(p.text, min(16, p.output_tokens)) for p in load.prompts[:number])
    return Load(load.target, prompts, min(load.streams, len(prompts)))


def report(flags: argparse.Namespace, found: Figures) -> dict[str, Any]:
    """Return the JSON of a run: its flags, its time, its figures."""
    given = {key: str(v) if isinstance(v, Path) else v for key, v in vars(flags).items()}
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"when": when, "flags": given, **found.as_dict()}


def text(found: Figures, stream: bool) -> str:
    """Return the figures as text to read."""
    rows = [
        ("requests", f"{found.requests} complete, {found.failed} failed, {found.seconds:.2f} s"),
        (
            "throughput",
            f"{found.tokens_per_second:.1f} tokens/s, {found.requests_per_second:.2f} requests/s",
        ),
    ]
    times = [("latency", found.latency_ms)]
    if stream:
        per_request = f"{found.messages_per_request:.1f} a request"
        rows.append(("messages", f"{found.messages_per_second:.1f} a second, {per_request}"))
        times = [("first token", found.ttft_ms), ("between messages", found.gap_ms), *times]
    rows += [
        (name, ", ".join(f"{q} {ms:.1f}" for q, ms in quantiles.items()) + " ms")
        for name, quantiles in times
        if quantiles
    ]
    rows.append(
        (
            "client CPU",
            f"{100 * found.client_cpu:.0f} % of a core in the busiest process, "
            f"{100 * found.client_cpu_total:.0f} % in all, "
            f"{found.client_us_per_message:.0f} µs a message",
        )
    )
    rows += [("error", f"{times} x {error}") for error, times in found.errors.items()]
    return "\n".join(f"{name:18}{value}" for name, value in rows)


def json_object(given: str) -> dict[str, Any]:
    """Parse a flag's JSON object."""
    try:
        value: object = json.loads(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if isinstance(value, dict):
        return value
    raise argparse.ArgumentTypeError(f'not a JSON object like {{"top_k": 5}}: {given}')


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; exit with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.HelpFormatter
    )
    server = parser.add_argument_group("the server")
    server.add_argument("--url", metavar="HOST:PORT", help="default: 127.0.0.1 and the usual port")
    server.add_argument("--protocol", choices=PROTOCOLS, default="triton-grpc", help="%(default)s")
    server.add_argument("--model", default="vllm", help="%(default)s")
    server.add_argument("--null", action="store_true", help="no server: measure the client itself")
    flag = parser.add_argument_group("the load").add_argument
    flag("--streams", type=int, default=64, help="most concurrent requests (%(default)s)")
    flag("--requests", type=int, default=0, help="number of requests (4 x --streams)")
    flag("--rate", type=float, default=0.0, help="open loop: requests per second")
    flag("--fixed-rate", action="store_true", help="with --rate: even intervals, not Poisson")
    flag("--seconds", type=float, default=600, help="send for at most this long (%(default)s)")
    flag("--patience", type=float, default=120, help="then wait this long (%(default)s)")
    flag("--processes", type=int, default=4, help="client processes (%(default)s)")
    flag("--warmup", type=int, default=0, help="short requests before the load (%(default)s)")
    flag = parser.add_argument_group("the requests").add_argument
    flag(
        "--dataset",
        default="synthetic",
        help="'synthetic', a ShareGPT-like .json, or a file with one prompt per line (%(default)s)",
    )
    flag(
        "--tokenizer",
        type=Path,
        help="the model's tokenizer.json or its folder, to make prompts of "
        "exactly --input-tokens; without it their length is approximate",
    )
    flag("--input-tokens", type=int, default=128, help="length of synthetic prompts (%(default)s)")
    flag("--output-tokens", type=int, default=0, help="(128; with ShareGPT as in the file)")
    flag("--shared-prefix", type=int, default=0, help="common words at the start of prompts")
    flag("--seed", type=int, default=0, help="of the random prompts (%(default)s)")
    flag("--not-streamed", dest="stream", action="store_false", help="request whole answers")
    flag("--temperature", type=float, default=1.0, help="%(default)s")
    flag("--sampling-parameters", type=json_object, default={}, metavar="JSON", help="extra fields")
    flag(
        "--assume-tokens",
        dest="count_tokens",
        action="store_false",
        help="count the requested tokens; do not ask the server for the number",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    flags = parser.parse_args(arguments)
    for name in ("streams", "processes", "input_tokens"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return flags


if __name__ == "__main__":
    sys.exit(main())

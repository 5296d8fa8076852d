#!/usr/bin/env python3
"""Compare ways to serve one model on this machine, with the same arguments and requests, in turns.

    bench/compare.py --config bench/configs/opt-125m.json --peers vllm,vllm-rust,vllm-api4,ours-4

Starts each peer that is installed here, waits until it serves, and prints what each made of the
same engine arguments. Then measures every load on each peer, --repeats times. By default all
servers run at the same time and only the one that is measured has work, so the memory settings must
leave room for all; with --one-at-a-time every repeat starts each server anew. Writes to --out:
results.json (after each measurement), table.md, plots, the servers' logs. If interrupted, it ends
the servers and reports the results so far.
Exit codes: 0; 1 if a peer did not start or a request failed; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen import workload
from loadgen.clients import Clients
from peers import cpus, plots
from peers.comparison import Comparison, Plan
from peers.fleet import say
from peers.peer import NAMES, Peer, PeerError
from peers.report import resolved_table, scaling_table, table
from peers.setup import BENCH, Setup
from peers.shape import reshape


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    flags = parse_flags(arguments)
    if flags.plot_only:
        draw(flags.plot_only, json.loads(flags.plot_only.read_text()))
        return 0
    flags.out.mkdir(parents=True, exist_ok=True)
    try:
        config = read_config(flags)
        plan, setup = plan_of(flags, config), setup_of(flags, config)
        peers = [Peer.parse(name) for name in dict.fromkeys(flags.peers.split(","))]
        plan.prompts(1, 0)  # what is wrong with the workload is said before anything starts
    except (PeerError, workload.WorkloadError, OSError, ValueError, KeyError) as error:
        say(f"{type(error).__name__}: {error}")
        return 2
    signal.signal(signal.SIGTERM, interrupt)
    results: dict[str, Any] = {"rows": [], "resolved": {}}
    try:
        with clients_of(flags) as clients:
            comparison = Comparison(plan, clients, flags.out, config)
            results = comparison.results
            code = int(not comparison.run(peers, setup))
    except KeyboardInterrupt:
        say(f"interrupted; what was measured is in {flags.out}")
        code = 130
    tell(flags.out, results)
    return code


def tell(folder: Path, results: dict[str, Any]) -> None:
    """Write and print the tables, and draw the plots."""
    rows = results["rows"]
    parts = resolved_table(results["resolved"]), scaling_table(rows), table(rows)
    report = "\n\n".join(filter(None, parts)) + "\n"
    (folder / "table.md").write_text(report)
    print(report, flush=True)
    draw(folder / "results.json", results)


def clients_of(flags: argparse.Namespace) -> Clients:
    """Start the client processes. With --client-cpus, everything else runs on the other CPUs.

    A process inherits the CPUs of the process that started it.
    """
    if not flags.client_cpus:
        return Clients(flags.processes)
    others = os.sched_getaffinity(0) - flags.client_cpus
    os.sched_setaffinity(0, flags.client_cpus)
    try:
        return Clients(flags.processes)
    finally:
        os.sched_setaffinity(0, others)


def interrupt(number: int, frame: object) -> None:
    """End the program as Ctrl-C does: on a signal, through every ``finally``."""
    raise KeyboardInterrupt


def draw(where: Path, results: dict[str, Any]) -> None:
    """Draw the plots beside ``where``, if matplotlib is there."""
    try:
        for path in plots.draw(results["rows"], where.parent):
            say(f"written: {path}")
    except ImportError:
        say(f"no matplotlib here: draw the plots elsewhere, with --plot-only {where.name}")


def read_config(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration, with the flags' engine arguments in it.

    With a "shape", the model is a copy of that shape, in the folder of the results.
    """
    config: dict[str, Any] = json.loads(flags.config.read_text())
    engine_args = config["engine_args"] = {**config["engine_args"], **flags.engine_args}
    if flags.model:
        engine_args["model"] = flags.model
    if flags.output_spread is not None:
        config["output_spread"] = flags.output_spread
    if shape := config.get("shape"):
        copy = reshape(Path(engine_args["model"]), shape, flags.out.resolve() / "model")
        engine_args["model"] = str(copy)
    return config


def plan_of(flags: argparse.Namespace, config: dict[str, Any]) -> Plan:
    """Return what the flags ask to measure."""
    tokenizer = flags.tokenizer
    if tokenizer is None:  # the model's own, if the model is a folder
        folder = Path(config["engine_args"]["model"])
        tokenizer = folder if (folder / "tokenizer.json").exists() else None
    given = ("requests", "requests_per_stream", "shared_prefix", "temperature", "output_spread")
    return Plan(
        tokenizer=workload.tokenizer_of(tokenizer),
        input_tokens=config["input_tokens"],
        output_tokens=config["output_tokens"],
        streams=flags.streams,
        modes=flags.modes,
        repeats=flags.repeats,
        start_seconds=flags.start_seconds,
        row_seconds=flags.row_seconds,
        limit_seconds=flags.limit_seconds,
        one_at_a_time=flags.one_at_a_time,
        streams_per_gpu=flags.streams_per_gpu,
        count_tokens=flags.count_tokens,
        **{key: config[key] for key in given if key in config},
    )


def setup_of(flags: argparse.Namespace, config: dict[str, Any]) -> Setup:
    """Return where things are."""
    common = dict(flags.env)
    return Setup(
        folder=flags.out.resolve(),
        python=flags.python.absolute(),  # the link of a virtual environment is not followed
        triton=flags.triton.resolve(),
        template=flags.model_repository.resolve(),
        execution_env=flags.execution_env and flags.execution_env.resolve(),
        official_backend=flags.official_backend and flags.official_backend.resolve(),
        engine_args=config["engine_args"],
        serving=config.get("serving", {}),
        vllm_env={**common, **dict(flags.vllm_env)},
        triton_env={**common, **dict(flags.triton_env)},
        triton_options=tuple(flags.triton_option),
    )


def variable(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE: {text}")
    return key, value


def numbers(text: str) -> list[int]:
    """Parse 1,64,256."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def modes(text: str) -> list[bool]:
    """Parse stream,whole: whether answers are streamed."""
    names = {"stream": True, "whole": False}
    try:
        return [names[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(names)}: {error}") from None


def parse_flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; exit with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"peers:\n{NAMES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument_group("what is compared").add_argument
    flag("--config", type=Path, default=BENCH / "configs/smollm2-cpu.json", help="%(default)s")
    flag("--peers", default="vllm,ours-1", help="the servers, by name (%(default)s)")
    flag("--streams", type=numbers, default=[1, 8], help="concurrent requests: 1,64,256")
    flag("--streams-per-gpu", action="store_true", help="as many for each GPU that a peer runs on")
    flag("--modes", type=modes, default=[True], help="stream, whole, or both (stream)")
    flag("--repeats", type=int, default=3, help="measurements of each load (%(default)s)")
    flag(
        "--output-spread",
        type=float,
        metavar="0..1",
        help="0.5: answers from half to one and a half times as long (the configuration's, or 0)",
    )
    flag("--count-tokens", action="store_true", help="show tokens that ours lose; costs a little")
    flag("--model", help="the model, in place of the configuration's")
    flag("--engine-args", type=json.loads, default={}, metavar="JSON", help="further arguments")
    flag("--tokenizer", type=Path, help="tokenizer.json (the model's folder, if it has one)")
    flag("--processes", type=int, default=4, help="client processes (%(default)s)")
    flag(
        "--client-cpus",
        type=cpus.parse,
        default=set(),
        metavar="0-3",
        help="CPUs for the clients only; the servers run on the other CPUs",
    )
    flag("--out", type=Path, default=Path("bench-results"), help="%(default)s")
    flag("--plot-only", type=Path, metavar="RESULTS.JSON", help="only draw the plots of a file")
    flag = parser.add_argument_group("how the servers run").add_argument
    flag("--one-at-a-time", action="store_true", help="start each server anew in every repeat")
    flag("--start-seconds", type=float, default=300, help="limit of a start (%(default)s)")
    flag("--row-seconds", type=float, default=60, help="limit of a measurement (%(default)s)")
    flag(
        "--limit-seconds", type=float, default=3600, help="start no measurement after (%(default)s)"
    )
    flag = parser.add_argument_group("where things are").add_argument
    flag(
        "--python",
        type=Path,
        default=Path(sys.executable),
        help="the Python that has vLLM (this one)",
    )
    flag("--triton", type=Path, default=Path("/opt/tritonserver"), help="%(default)s")
    repository = BENCH.parent / "model_repository/vllm"
    flag("--model-repository", type=Path, default=repository, help="our model (%(default)s)")
    flag("--execution-env", type=Path, help="environment of Triton's stubs (their own Python)")
    flag("--official-backend", type=Path, help="the src folder of Triton's vllm_backend")
    flag("--env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    flag("--vllm-env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    flag("--triton-env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    option = "of tritonserver: --triton-option=--allow-gpu-metrics=false"
    flag("--triton-option", action="append", default=[], metavar="--OPTION=VALUE", help=option)
    given = parser.parse_args(arguments)
    everywhere = os.sched_getaffinity(0)
    if given.client_cpus and not set() < given.client_cpus < everywhere:
        parser.error(f"--client-cpus: must be some of {cpus.as_list(everywhere)}, and not all")
    return given


if __name__ == "__main__":
    sys.exit(main())

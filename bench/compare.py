#!/usr/bin/env python3
"""Compare ways to serve one model on this machine: same arguments, same requests, taking turns.

    bench/compare.py --config bench/configs/opt-125m.json --peers vllm,vllm-rust,vllm-api4,ours-4

Starts each peer that is installed here, waits until it serves, prints what each made of the same
engine arguments, and measures: every load on each peer, again --repeats times. By default all
servers are up at the same time, idle but for one, so the memory settings must leave room for all;
with --one-at-a-time each is started anew in every repeat. Writes to --out: results.json (after each
measurement), table.md, plots, the servers' logs. Ends what it started, also when interrupted.
Exit codes: 0; 1 if a peer did not start or a request failed; 2 usage.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadgen import workload
from loadgen.clients import ClientError, Clients
from loadgen.figures import figures
from loadgen.load import Load, Prompt, Target
from loadgen.progress import bar
from peers import plots
from peers.fleet import Fleet, say
from peers.peer import NAMES, Peer, PeerError
from peers.report import resolved_table, table
from peers.server import Server, ServerError
from peers.setup import BENCH, MODEL_NAME, Setup, default_python

_REQUESTS_A_STREAM = 4
_WARM_UP_TOKENS = 16


class Comparison:
    """The loads, the rows measured so far, and where they are written."""

    def __init__(self, flags: argparse.Namespace, config: dict[str, Any], clients: Clients) -> None:
        self._flags = flags
        self._config = config
        self._clients = clients
        self._tokenizer = workload.tokenizer_of(flags.tokenizer)
        self._deadline = time.monotonic() + flags.limit_seconds
        self.results: dict[str, Any] = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": platform.platform(),
            "command": sys.argv,
            "config": config,
            "resolved": {},
            "ready_seconds": {},
            "rows": [],
        }

    def run(self, peers: Sequence[Peer], setup: Setup) -> bool:
        """Start the peers, measure, end them. Returns whether all took part and none failed."""
        flags = self._flags
        with Fleet(setup, flags.start_seconds, flags.one_at_a_time, self.results) as fleet:
            found = fleet.installed(peers)
            if not flags.one_at_a_time:
                fleet.start_all(found, self._warm_up)
            self._measure_all(found, fleet)
        rows = self.results["rows"]
        return bool(rows) and not fleet.missing and not any(row["failed"] for row in rows)

    def _measure_all(self, peers: Sequence[Peer], fleet: Fleet) -> None:
        """Measure every load on each peer, the peers taking turns; stop at the time limit.

        Another peer begins in each repeat, so that none is always measured after the same one.
        """
        turns = [
            (repeat, stream, streams, peer)
            for repeat in range(self._flags.repeats)
            for stream in self._flags.modes
            for streams in self._flags.streams
            for peer in (*peers[repeat % len(peers) :], *peers[: repeat % len(peers)])
            if not (peer.kind == "offline" and stream)
        ]
        if self._flags.one_at_a_time:
            turns.sort(key=lambda turn: (turn[0], peers.index(turn[3])))
        with bar(len(turns), "measurements") as progress:
            for done, (repeat, stream, streams, peer) in enumerate(turns):
                if time.monotonic() > self._deadline:
                    say(f"time limit: {len(turns) - done} of {len(turns)} measurements left out")
                    return
                server = fleet.server_of(peer, self._warm_up)
                if server is not None:
                    self._add(self._measure(peer, server, stream, streams, repeat))
                progress(done + 1)

    def _measure(
        self, peer: Peer, server: Server, stream: bool, streams: int, repeat: int
    ) -> dict[str, Any]:
        prompts = self._prompts(streams, repeat)
        before = server.tree.cpu_seconds()
        try:
            if peer.kind == "offline":
                found = self._offline(server, prompts)
            else:
                target = self._target(peer, server, stream)
                load = Load(target, prompts, streams, seconds=self._flags.row_seconds)
                found = figures(self._clients.run(load)).as_dict()
        except (OSError, ClientError, ServerError) as error:
            found = {"failed": len(prompts), "errors": {str(error): 1}}
        after = server.tree.cpu_seconds()
        used = Counter({name: cpu - before.get(name, 0.0) for name, cpu in after.items()})
        row = {"peer": peer.name, "stream": stream, "streams": streams, "repeat": repeat, **found}
        if seconds := found.get("seconds"):
            row["server_cores"] = round(sum(used.values()) / seconds, 2)
            row["busiest_threads"] = {n: round(s / seconds, 2) for n, s in used.most_common(6)}
        return row

    def _target(self, peer: Peer, server: Server, stream: bool, count: bool = False) -> Target:
        sampling = {"temperature": self._config.get("temperature", 1.0), "ignore_eos": True}
        address = server.command.address_of(peer)
        return Target(address, peer.protocol, MODEL_NAME, stream, sampling, count)

    def _prompts(self, streams: int, repeat: int) -> tuple[Prompt, ...]:
        number = self._config.get("requests", {}).get(str(streams), _REQUESTS_A_STREAM * streams)
        return workload.synthetic(
            self._tokenizer,
            number,
            self._config["input_tokens"],
            self._config["output_tokens"],
            shared_prefix=self._config.get("shared_prefix", 0),
            seed=1000 * streams + repeat,
        )

    def _offline(self, server: Server, prompts: Sequence[Prompt]) -> dict[str, Any]:
        sampling = {"temperature": self._config.get("temperature", 1.0), "ignore_eos": True}
        request = {"prompts": [(p.text, p.output_tokens) for p in prompts], "sampling": sampling}
        reply = server.generate(request, self._flags.row_seconds + 120)
        return {
            "requests": len(prompts),
            "failed": 0,
            "seconds": reply["seconds"],
            "tokens_per_second": reply["tokens"] / reply["seconds"],
            "requests_per_second": len(prompts) / reply["seconds"],
        }

    def _warm_up(self, peer: Peer, server: Server) -> None:
        """Send short requests; say whether as many tokens are counted as are assumed later.

        Raises ServerError when a request fails.
        """
        streams = max(self._flags.streams)
        prompts = tuple(
            Prompt(p.text, _WARM_UP_TOKENS) for p in self._prompts(streams, -1)[: 2 * streams]
        )
        if peer.kind == "offline":
            self._offline(server, prompts)
            return
        target = self._target(peer, server, self._flags.modes[0], count=peer.kind != "official")
        found = figures(self._clients.run(Load(target, prompts, min(streams, len(prompts)))))
        expected = len(prompts) * _WARM_UP_TOKENS
        if found.failed:
            raise ServerError(f"{found.failed} of the warm-up's requests failed: {found.errors}")
        if target.count_tokens and found.output_tokens != expected:
            say(f"{peer.name}: counts {found.output_tokens} tokens where {expected} were asked for")

    def _add(self, row: dict[str, Any]) -> None:
        self.results["rows"].append(row)
        rate = row.get("tokens_per_second", 0.0)
        how = "streamed" if row["stream"] else "not streamed"
        say(
            f"{row['peer']:16} {row['streams']:5} streams {how}, repeat {row['repeat'] + 1}: "
            f"{rate:9,.0f} tokens/s, TTFT {row.get('ttft_ms', {})}, {row['failed']} failed"
        )
        (self._flags.out / "results.json").write_text(json.dumps(self.results, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return the exit code."""
    flags = parse_flags(arguments)
    if flags.plot_only:
        draw(flags.plot_only, json.loads(flags.plot_only.read_text()))
        return 0
    flags.out.mkdir(parents=True, exist_ok=True)
    try:
        config, setup = read_config(flags)
        peers = [Peer.parse(name) for name in flags.peers.split(",")]
    except (PeerError, OSError, ValueError) as error:
        say(str(error))
        return 2
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with Clients(flags.processes) as clients:
            comparison = Comparison(flags, config, clients)
            complete = comparison.run(peers, setup)
    except KeyboardInterrupt:
        say(f"interrupted; what was measured is in {flags.out}")
        return 130
    results = comparison.results
    report = f"{resolved_table(results['resolved'])}\n\n{table(results['rows'])}\n"
    (flags.out / "table.md").write_text(report)
    print(report)
    draw(flags.out / "results.json", results)
    return int(not complete)


def draw(where: Path, results: dict[str, Any]) -> None:
    """Draw the plots beside ``where``, if matplotlib is there."""
    try:
        for path in plots.draw(results["rows"], where.parent):
            say(f"written: {path}")
    except ImportError:
        say(f"no matplotlib here: draw the plots elsewhere, with --plot-only {where.name}")


def read_config(flags: argparse.Namespace) -> tuple[dict[str, Any], Setup]:
    """Return the configuration with the flags in it, and where things are."""
    config: dict[str, Any] = json.loads(flags.config.read_text())
    engine_args = {**config["engine_args"], **flags.engine_args}
    if flags.model:
        engine_args["model"] = flags.model
    config["engine_args"] = engine_args
    if flags.tokenizer is None and (Path(engine_args["model"]) / "tokenizer.json").exists():
        flags.tokenizer = Path(engine_args["model"])
    common = dict(flags.env)
    setup = Setup(
        folder=flags.out.resolve(),
        python=flags.python,
        triton=flags.triton,
        template=flags.model_repository.resolve(),
        execution_env=flags.execution_env,
        official_backend=flags.official_backend,
        engine_args=engine_args,
        serving=config.get("serving", {}),
        vllm_env={**common, **dict(flags.vllm_env)},
        triton_env={**common, **dict(flags.triton_env)},
    )
    return config, setup


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
    flag("--peers", default="vllm,ours-1", help="see below (%(default)s)")
    flag("--streams", type=numbers, default=[1, 8], help="requests under way: 1,64,256")
    flag("--modes", type=modes, default=[True], help="stream, whole, or both (stream)")
    flag("--repeats", type=int, default=3, help="%(default)s")
    flag("--model", help="instead of the configuration's")
    flag("--engine-args", type=json.loads, default={}, metavar="JSON", help="further ones")
    flag("--tokenizer", type=Path, help="tokenizer.json (the model's folder, if it has one)")
    flag("--processes", type=int, default=4, help="client processes (%(default)s)")
    flag("--out", type=Path, default=Path("bench-results"), help="%(default)s")
    flag("--plot-only", type=Path, metavar="RESULTS.JSON", help="draw, and do nothing else")
    flag = parser.add_argument_group("how the servers run").add_argument
    flag("--one-at-a-time", action="store_true", help="start each anew in every repeat")
    flag("--start-seconds", type=float, default=300, help="until ready, at most (%(default)s)")
    flag("--row-seconds", type=float, default=60, help="send no longer (%(default)s)")
    flag(
        "--limit-seconds", type=float, default=3600, help="start no measurement after (%(default)s)"
    )
    flag = parser.add_argument_group("where things are").add_argument
    flag("--python", type=Path, default=default_python(), help="has vLLM (the one that runs this)")
    flag("--triton", type=Path, default=Path("/opt/tritonserver"), help="%(default)s")
    repository = BENCH.parent / "model_repository/vllm"
    flag("--model-repository", type=Path, default=repository, help="our model (%(default)s)")
    flag("--execution-env", type=Path, help="for Triton's stubs (none: their own Python)")
    flag("--official-backend", type=Path, help="the src folder of Triton's vllm_backend")
    flag("--env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    flag("--vllm-env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    flag("--triton-env", type=variable, action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

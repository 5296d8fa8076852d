"""A comparison: measures every load on each peer in turns, several times, and collects the rows."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadgen import workload
from loadgen.clients import Clients
from loadgen.figures import figures
from loadgen.load import ClientError, Load, Prompt, Target
from loadgen.progress import bar
from peers.fleet import Fleet, say
from peers.peer import Peer
from peers.server import Server, ServerError
from peers.setup import MODEL_NAME, Setup
from peers.steps import between, steps_of

_WARM_UP_TOKENS = 16
_METRICS_SECONDS = 1.5  # for ours to report what it has counted


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured. ``modes``: whether answers are streamed. Times are in seconds.

    ``streams_per_gpu``: a peer on N GPUs gets N times the streams. ``requests``: how many a load of
    so many streams has; others have ``requests_per_stream`` for each. ``count_tokens``: ours
    count the tokens of each message, which shows what is lost.
    """

    tokenizer: workload.Tokenizer
    input_tokens: int
    output_tokens: int
    streams: Sequence[int]
    modes: Sequence[bool]
    repeats: int
    start_seconds: float
    row_seconds: float
    limit_seconds: float
    one_at_a_time: bool
    streams_per_gpu: bool = False
    requests: Mapping[str, int] = field(default_factory=dict)
    requests_per_stream: int = 4
    shared_prefix: int = 0
    temperature: float = 1.0
    output_spread: float = 0.0
    count_tokens: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters that make all answers equally long."""
        return {"temperature": self.temperature, "ignore_eos": True}

    def streams_of(self, peer: Peer) -> list[int]:
        """Return the loads of a peer."""
        return [n * peer.gpus if self.streams_per_gpu else n for n in self.streams]

    def prompts(self, streams: int, repeat: int) -> tuple[Prompt, ...]:
        """Return the requests of a load: the same for all peers, others in each repeat."""
        return workload.synthetic(
            self.tokenizer,
            self.requests.get(str(streams), self.requests_per_stream * streams),
            self.input_tokens,
            self.output_tokens,
            shared_prefix=self.shared_prefix,
            output_spread=self.output_spread,
            seed=1000 * streams + repeat,
        )

    def turns(self, peers: Sequence[Peer]) -> list[tuple[int, bool, int, Peer]]:
        """Return repeat, mode, streams and peer of each measurement, in order.

        Another peer begins in each repeat, so that none is always measured after the same one.
        Offline answers come all at once: they are compared with the greatest number of streams.
        """
        turns = [
            (repeat, stream, self.streams_of(peer)[load], peer)
            for repeat in range(self.repeats)
            for stream in self.modes
            for load, streams in enumerate(self.streams)
            for peer in (*peers[repeat % len(peers) :], *peers[: repeat % len(peers)])
            if peer.kind != "offline" or (not stream and streams == max(self.streams))
        ]
        if self.one_at_a_time:
            turns.sort(key=lambda turn: (turn[0], peers.index(turn[3])))
        return turns


class Comparison:
    """Measures by a plan. ``results`` is what is known so far, also in ``folder``/results.json."""

    def __init__(self, plan: Plan, clients: Clients, folder: Path, config: object) -> None:
        """``config`` goes into the results, for the reader."""
        self._plan = plan
        self._clients = clients
        self._folder = folder
        self._prompts: dict[tuple[int, int], tuple[Prompt, ...]] = {}
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
        plan = self._plan
        with Fleet(setup, plan.start_seconds, plan.one_at_a_time, self.results) as fleet:
            found = fleet.installed(peers)
            if not plan.one_at_a_time:
                fleet.start_all(found, self._warm_up)
            if found:
                self._measure_all(found, fleet)
        rows = self.results["rows"]
        return bool(rows) and not fleet.missing and not any(row["failed"] for row in rows)

    def _measure_all(self, peers: Sequence[Peer], fleet: Fleet) -> None:
        deadline = time.monotonic() + self._plan.limit_seconds
        turns = self._plan.turns(peers)
        with bar(len(turns), "measurements") as progress:
            for done, (repeat, stream, streams, peer) in enumerate(turns):
                if time.monotonic() > deadline:
                    say(f"time limit: {len(turns) - done} of {len(turns)} measurements left out")
                    return
                server = fleet.server_of(peer, self._warm_up)
                if server is not None:
                    self._add(self._measure(peer, server, stream, streams, repeat))
                progress(done + 1)

    def _measure(
        self, peer: Peer, server: Server, stream: bool, streams: int, repeat: int
    ) -> dict[str, Any]:
        prompts = self._prompts_of(streams, repeat)
        # Each of several front ends counts the steps that had something for it.
        counts_once = (peer.front_ends, peer.api_servers) == (1, 1)
        steps = steps_of(server.command.metrics_address) if counts_once else None
        before = server.tree.cpu_seconds()
        try:
            if peer.kind == "offline":
                found = self._offline(server, prompts)
            else:
                # vLLM's counts once, at the end of an answer.
                counts = self._plan.count_tokens and peer.kind == "ours"
                target = self._target(peer, server, stream, count_tokens=counts)
                load = Load(target, prompts, streams, seconds=self._plan.row_seconds)
                found = figures(self._clients.run(load)).as_dict()
                if counts and (found["requests"], found["failed"]) == (len(prompts), 0):
                    asked = sum(prompt.output_tokens for prompt in prompts)
                    found["lost_tokens"] = asked - found["output_tokens"]
        except (OSError, ClientError, ServerError) as error:
            found = {"failed": len(prompts), "errors": {str(error): 1}}
        after = server.tree.cpu_seconds()
        used = Counter({name: cpu - before.get(name, 0.0) for name, cpu in after.items()})
        row = {"peer": peer.name, "stream": stream, "streams": streams, "repeat": repeat, **found}
        if seconds := found.get("seconds"):
            row["server_cores"] = round(sum(used.values()) / seconds, 2)
            row["cores_by_process"] = {n: round(s / seconds, 2) for n, s in by_process(used)}
            row["busiest_threads"] = {n: round(s / seconds, 2) for n, s in used.most_common(6)}
        if steps is not None:
            time.sleep(_METRICS_SECONDS)
            now = steps_of(server.command.metrics_address)
            row |= between(steps, now, streams // peer.engines)
        return row

    def _prompts_of(self, streams: int, repeat: int) -> tuple[Prompt, ...]:
        """Return the prompts of a load, made once for the peers that take turns."""
        key = (streams, repeat)
        if key not in self._prompts:
            self._prompts = {k: made for k, made in self._prompts.items() if k[1] == repeat}
            self._prompts[key] = self._plan.prompts(streams, repeat)
        return self._prompts[key]

    def _target(self, peer: Peer, server: Server, stream: bool, *, count_tokens: bool) -> Target:
        address = server.command.address_of(peer)
        sampling = self._plan.sampling
        return Target(address, peer.protocol, MODEL_NAME, stream, sampling, count_tokens)

    def _offline(self, server: Server, prompts: Sequence[Prompt]) -> dict[str, Any]:
        asked = [(p.text, p.output_tokens) for p in prompts]
        request = {"prompts": asked, "sampling": self._plan.sampling}
        reply = server.generate(request, self._plan.row_seconds + 120)
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
        streams = max(self._plan.streams_of(peer))
        made = self._prompts_of(streams, self._plan.repeats)[: 2 * streams]
        prompts = tuple(Prompt(p.text, _WARM_UP_TOKENS) for p in made)
        if peer.kind == "offline":
            self._offline(server, prompts)
            return
        # The official backend's older versions cannot count.
        target = self._target(
            peer, server, self._plan.modes[0], count_tokens=peer.kind != "official"
        )
        found = figures(self._clients.run(Load(target, prompts, min(streams, len(prompts)))))
        expected = len(prompts) * _WARM_UP_TOKENS
        if server.command.metrics_address:
            time.sleep(_METRICS_SECONDS)
        if found.failed:
            raise ServerError(f"{found.failed} of the warm-up's requests failed: {found.errors}")
        if target.count_tokens and found.output_tokens != expected:
            say(f"{peer.name}: counts {found.output_tokens} tokens where {expected} were asked for")

    def _add(self, row: dict[str, Any]) -> None:
        self.results["rows"].append(row)
        rate = row.get("tokens_per_second", 0.0)
        how = "streamed" if row["stream"] else "not streamed"
        ttft = ", ".join(f"{q} {ms:.1f}" for q, ms in row.get("ttft_ms", {}).items())
        say(
            f"{row['peer']:16} {row['streams']:5} streams {how}, repeat {row['repeat'] + 1}: "
            f"{rate:9,.0f} tokens/s, TTFT {ttft or '-'} ms, {row['failed']} failed"
        )
        (self._folder / "results.json").write_text(json.dumps(self.results, indent=1))


def by_process(used: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the CPU seconds of the processes of each name, most first, of ``cpu_seconds``."""
    total: dict[str, float] = defaultdict(float)
    for name, seconds in used.items():
        total[name.split("/", 1)[0]] += seconds
    return sorted(total.items(), key=lambda item: -item[1])

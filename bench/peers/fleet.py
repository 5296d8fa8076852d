"""The servers of a comparison: which are installed, which run, and how they end."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loadgen.load import ClientError
from peers.peer import Peer, PeerError
from peers.server import Server, ServerError
from peers.setup import Setup, check, command

WarmUp = Callable[[Peer, Server], None]


def say(line: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(line, file=sys.stderr)
    else:
        tqdm.write(line, file=sys.stderr)


class Fleet:
    """The servers. Use as a context manager; leaving it ends them all.

    ``missing`` are the peers that are asked for and cannot take part.
    """

    def __init__(
        self, setup: Setup, start_seconds: float, one_at_a_time: bool, results: dict[str, Any]
    ) -> None:
        """``results`` takes what is found out about the servers."""
        self._setup = setup
        self._start_seconds = start_seconds
        self._one_at_a_time = one_at_a_time
        self._results = results
        self._servers: dict[str, Server] = {}
        self.missing: set[str] = set()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_all()

    def _stop_all(self) -> None:
        with ThreadPoolExecutor(max(1, len(self._servers))) as pool:
            list(pool.map(Server.stop, self._servers.values()))
        self._servers.clear()

    def installed(self, peers: Sequence[Peer]) -> list[Peer]:
        """Return the peers that are installed here; say why the others are not."""
        found = []
        for peer in peers:
            try:
                check(peer, self._setup)
                found.append(peer)
            except PeerError as error:
                self._miss(peer, error)
        return found

    def start_all(self, peers: Sequence[Peer], warm_up: WarmUp) -> None:
        """Start a server for each peer, all at once; wait for them, and warm each up."""
        names = {peer.server: peer for peer in peers}
        say(f"starting {', '.join(names)}")
        for peer in names.values():
            self._start(peer)
        for peer in peers:
            self._await(peer, warm_up)

    def server_of(self, peer: Peer, warm_up: WarmUp) -> Server | None:
        """Return the peer's server, started if servers run one at a time; None if it failed."""
        if peer.name in self.missing:
            return None
        if peer.server not in self._servers and self._one_at_a_time:
            self._stop_all()
            self._start(peer)
            self._await(peer, warm_up)
        return self._servers.get(peer.server)

    def _start(self, peer: Peer) -> None:
        started = command(peer, self._setup, _free_ports())
        self._servers[peer.server] = Server(peer, started, self._setup.folder)

    def _await(self, peer: Peer, warm_up: WarmUp) -> None:
        server = self._servers.get(peer.server)
        try:
            if server is None:
                raise ServerError("its server did not start")
            seconds = server.await_ready(self._start_seconds)
            warm_up(peer, server)
        except (ServerError, ClientError, OSError) as error:
            self._miss(peer, error)
            if server is not None:
                server.stop()
                del self._servers[peer.server]
            return
        say(f"{peer.name}: ready after {seconds:.0f} s")
        self._results["ready_seconds"].setdefault(peer.server, []).append(round(seconds, 1))
        self._results["resolved"][peer.server] = server.resolved()

    def _miss(self, peer: Peer, reason: Exception) -> None:
        say(f"{peer.name}: left out: {reason}")
        self.missing.add(peer.name)


def _free_ports() -> tuple[int, ...]:
    """Return ports of the loopback interface that are free now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(4):
            each = stack.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            ports.append(int(each.getsockname()[1]))
    return tuple(ports)

"""A server's process tree: started, awaited, looked at, and ended with all that it started."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers.peer import Peer
from peers.processes import Tree
from peers.setup import Command

_STOP_SECONDS = 25.0  # tritonserver is given 10 to end its models
_RESOLVED = {
    "vllm": r"LLM engine \(v([\w.+]+)\)",
    "max_num_batched_tokens": r"max_num_batched_tokens=(\d+)",
    "max_num_seqs": r"max_num_seqs=(\d+)",
    "max_seq_len": r"max_seq_len=(\d+)",
    "dtype": r"dtype=torch\.(\w+)",
    "prefix caching": r"enable_prefix_caching=(\w+)",
    "eager": r"enforce_eager=(\w+)",
    "async scheduling": r"[Aa]synchronous scheduling is (\w+)",
    "KV cache tokens": r"KV cache size: ([\d,]+) tokens",
}


# A server has a process group of its own, by which what it starts is known, orphans included. Not a
# session of its own: Linux schedules each as a group (autogroup), and then a server that takes all
# cores kept its clients from running for up to a minute (Linux 6.18).
_OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)


class ServerError(Exception):
    """A server did not start, or has gone; the message holds the end of its log."""


class Server:
    """One server of a peer. ``tree`` is what there is of its processes."""

    def __init__(self, peer: Peer, command: Command, folder: Path) -> None:
        """Start it; ``await_ready`` waits. Its log is ``folder``/<name>.log."""
        self.peer = peer
        self.command = command
        self.log = folder / f"{peer.server}.log"
        self._since = time.monotonic()
        pipe = subprocess.PIPE if peer.kind == "offline" else subprocess.DEVNULL
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command.arguments,
                stdin=pipe,
                stdout=pipe if peer.kind == "offline" else log,
                stderr=log,
                env=os.environ | command.environment,
                cwd=folder,
                **_OWN_GROUP,
            )
        self.tree = Tree(self._process.pid)

    def await_ready(self, seconds: float) -> float:
        """Wait until it serves; return how many seconds that took since its start."""
        deadline = self._since + seconds
        if self.peer.kind == "offline":
            self._reply(deadline)
            return time.monotonic() - self._since
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"ended with {self._process.returncode}{self._log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._get(self.command.ready_path) == 200:
                    return time.monotonic() - self._since
            time.sleep(0.25)
        raise ServerError(f"not ready in {seconds:.0f} s{self._log_tail()}")

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection(self.command.address, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def generate(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Hand the offline peer its requests, and return its figures."""
        assert self._process.stdin is not None, "the offline peer's is a pipe"
        self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
        self._process.stdin.flush()
        return self._reply(time.monotonic() + seconds)

    def _reply(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None, "the offline peer's is a pipe"
        timer = threading.Timer(deadline - time.monotonic(), self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise ServerError(f"ended, or was ended as too slow{self._log_tail()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def resolved(self) -> dict[str, str]:
        """Return the arguments as the engine resolved them, from its log."""
        text = self.log.read_text(errors="replace")
        found = {key: set(re.findall(pattern, text)) for key, pattern in _RESOLVED.items()}
        return {key: " and ".join(sorted(values)) for key, values in found.items() if values}

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-25:]
        return f"; {self.log} ends with\n" + "\n".join(line[:300] for line in lines)

    def stop(self) -> None:
        """End it and all that it started, by force if need be."""
        self.tree.processes()  # known now, they are known as orphans
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.tree.kill()
        self._process.wait(_STOP_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        for argument in self.command.arguments:  # what a killed Triton leaves
            if found := re.search(r"shm-region-prefix-name=(bench_\w+)", argument):
                for left in Path("/dev/shm").glob(f"{found[1]}*"):  # noqa: S108 (Triton's choice)
                    left.unlink()

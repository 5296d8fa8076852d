"""Nodes that vLLM itself joins to one engine, or to one group of data-parallel engines.

The node that serves is the head. Each other node runs ``vllm serve --headless``
(scripts/join_cluster.sh), which connects to the head's handshake port. vLLM waits for the nodes
without a limit and, with dense models, does not notice when one is lost: the requests there would
never end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_vllm.errors import SettingsError

logger = logging.getLogger(__name__)

_ESTABLISHED = "01"  # <net/tcp_states.h>
JOIN_TIMEOUT = "TRITON_VLLM_JOIN_TIMEOUT"  # environment variable of the engine core, in seconds
_PING_SECONDS = 10.0
# An engine answers between two steps, and no step takes this long.
_PATIENCE_SECONDS = 60.0
_REPORT_SECONDS = 15.0
_ENGINE_PROCESSES = ("EngineCore", "VLLM_DP_Coordinator")


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where ``number`` "engines" or "nodes", this one included, connect to this node.

    Each data-parallel engine connects to vLLM's handshake port. Each worker of an engine that spans
    nodes connects to torch.distributed's store.
    """

    host: str
    port: int
    number: int
    what: str

    def arrived(self) -> int:
        """Return how many are connected."""
        there = connections(self.port)
        return len(there if self.what == "engines" else set(there))


class SingleNode:
    """An engine whose nodes need no wait and no watch: one node, or nodes that Ray watches."""

    def wait_for_nodes(self) -> contextlib.AbstractContextManager[None]:
        """Hold the context in which the engine is started. Blocks, and may raise SettingsError."""
        return contextlib.nullcontext()

    async def watch(self, llm: Any) -> None:
        """End the engine's processes here when those of another node are lost, until cancelled."""

    def close(self) -> None:
        """Let ``wait_for_nodes`` fail: the model is being unloaded. Any thread."""


class MultiNode(SingleNode):
    """The head's view of the nodes that vLLM itself joins."""

    def __init__(self, rendezvous: Rendezvous | None, seconds: float) -> None:
        """Wait ``seconds`` for all nodes at the ``rendezvous``; None: this is not the head node."""
        self._rendezvous = rendezvous
        self._seconds = seconds
        self._closing = False

    def close(self) -> None:  # noqa: D102 (as above)
        self._closing = True

    @contextlib.contextmanager
    def wait_for_nodes(self) -> Iterator[None]:
        """Hold the start of the engine; end its processes here when nodes are late."""
        if self._rendezvous is None:
            yield
            return
        started = threading.Event()
        with ThreadPoolExecutor(1, "cluster") as thread:
            failure = thread.submit(self._wait, self._rendezvous, started)
            try:
                yield
            except Exception as error:
                started.set()
                if failure.result():
                    raise SettingsError(failure.result()) from error
                raise
            finally:
                started.set()

    def _wait(self, rendezvous: Rendezvous, started: threading.Event) -> str:
        """Wait until all have arrived. Return why the engine was ended before, if it was."""
        since = time.monotonic()
        reported = since + 5 - _REPORT_SECONDS
        while not started.wait(0.5):
            arrived, now = rendezvous.arrived(), time.monotonic()
            if arrived >= rendezvous.number:
                break  # vLLM is in charge from here on
            missing = (
                f"{arrived} of {rendezvous.number} {rendezvous.what} have connected to "
                f"{rendezvous.host}:{rendezvous.port}"
            )
            if self._closing or now - since > self._seconds:
                end_engine()
                late = (
                    f'{missing} within {self._seconds:g} s ("serving.cluster_join_timeout_seconds")'
                    ": start the others with scripts/join_cluster.sh"
                )
                return "the model is being unloaded" if self._closing else late
            if now - reported > _REPORT_SECONDS:
                reported = now
                logger.info(f"waiting for the cluster: {missing}")
        return ""

    async def watch(self, llm: Any) -> None:
        """Ping all engines; when one does not answer, end the processes here."""
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                await asyncio.wait_for(llm.engine_core.is_sleeping_async(), _PATIENCE_SECONDS)
            except asyncio.TimeoutError:
                logger.error(
                    f"an engine of the cluster has not answered for {_PATIENCE_SECONDS:g} s: "
                    "it is considered lost"
                )
                end_engine()
                return
            except Exception as error:  # it died, and its process is watched elsewhere
                logger.info(f"the cluster is no longer watched: {type(error).__name__}")
                return


def end_engine() -> None:
    """Kill the engine's processes that this process started; their end is noticed elsewhere."""
    for process in multiprocessing.active_children():
        if process.name.startswith(_ENGINE_PROCESSES):
            process.kill()


def connections(port: int) -> list[str]:
    """Return the remote address of each established TCP connection to a port of this node.

    In hexadecimal (proc(5), net/tcp). Of an IPv6 address the last four bytes, which for a mapped
    IPv4 address are that address.
    """
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                _, local, remote, state = line.split()[:4]
                if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
                    found.append(remote.partition(":")[0][-8:])
    return found

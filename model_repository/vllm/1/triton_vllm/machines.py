"""Machines that vLLM itself joins to one engine, or to one group of data-parallel engines.

The one that serves is the head; on each of the others runs ``vllm serve --headless``
(scripts/join_cluster.sh), which connects to the head's handshake port. vLLM waits for them for
ever, and, of dense models, it does not notice when one is lost: its requests would never end.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triton_vllm.errors import SettingsError
from triton_vllm.streaming import Log

_ESTABLISHED = "01"  # <net/tcp_states.h>
_PING_SECONDS = 10.0
# An engine answers between two steps, of which none takes this long.
_PATIENCE_SECONDS = 60.0
_REPORT_SECONDS = 15.0
_ENGINE_PROCESSES = ("EngineCore", "VLLM_DP_Coordinator")


class Machines:
    """The head's view of the others."""

    def __init__(
        self, handshake: tuple[str, int] | None, engines: int, seconds: float, log: Log
    ) -> None:
        """``engines`` connect to the address ``handshake`` within ``seconds``.

        Without ``handshake``, the workers of one engine are on several machines, which
        torch.distributed joins, within a time of its own ("distributed_timeout_seconds").
        """
        self._handshake = handshake
        self._engines = engines
        self._seconds = seconds
        self._log = log
        self._gave_up = ""
        self._closing = False

    def close(self) -> None:
        """Let ``gather`` fail: the model is being unloaded. Any thread."""
        self._closing = True

    @contextlib.contextmanager
    def gather(self) -> Iterator[None]:
        """Hold the start of the engine; end its processes here when the others do not come."""
        if self._handshake is None:
            yield
            return
        started = threading.Event()
        self._gave_up = ""
        waiting = threading.Thread(target=self._wait, args=(started,), name="cluster", daemon=True)
        waiting.start()
        try:
            yield
        except Exception as error:
            if self._gave_up:
                raise SettingsError(self._gave_up) from error
            raise
        finally:
            started.set()
            waiting.join()

    def _wait(self, started: threading.Event) -> None:
        assert self._handshake is not None, "as gather has seen"
        host, port = self._handshake
        since = time.monotonic()
        reported = 0.0
        while not started.wait(0.5):
            connected = connections(port)
            if connected >= self._engines:
                return  # from here on vLLM knows them
            if self._closing:
                self._gave_up = "the model is being unloaded"
                end_engine()
                return
            now = time.monotonic()
            missing = f"{connected} of {self._engines} engines have connected to {host}:{port}"
            if now - since > self._seconds:
                self._gave_up = (
                    f'{missing} within {self._seconds:g} s ("serving.cluster_timeout_seconds"): '
                    "start the others with scripts/join_cluster.sh"
                )
                end_engine()
                return
            if now - since > 5 and now - reported > _REPORT_SECONDS:
                reported = now
                self._log.log_info(f"waiting for the cluster: {missing}")

    async def watch(self, llm: Any) -> None:
        """Ask all engines now and then; when one does not answer, end the processes here."""
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                await asyncio.wait_for(llm.engine_core.is_sleeping_async(), _PATIENCE_SECONDS)
            except TimeoutError:
                self._log.log_error(
                    f"an engine of the cluster has not answered for {_PATIENCE_SECONDS:g} s: "
                    "it is taken for lost"
                )
                end_engine()
                return
            except Exception as error:  # it died, and those who watch its process know
                self._log.log_info(f"the cluster is no longer watched: {type(error).__name__}")
                return


def end_engine() -> None:
    """Kill the engine's processes that this process started; its end is noticed elsewhere."""
    for process in multiprocessing.active_children():
        if process.name.startswith(_ENGINE_PROCESSES):
            process.kill()


def connections(port: int) -> int:
    """Return how many TCP connections to a port of this machine stand (proc(5), net/tcp)."""
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                count += state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port
    return count

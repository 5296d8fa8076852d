"""The machines of one engine: are they all there, within which time, and do they stay.

vLLM and Ray do the work; they wait for one another for as long as it takes, and say little of what
they wait for. So here is a gate before the engine's start, with a deadline, that says what is
missing; and, where nobody else would notice, a watch over those that run elsewhere. A machine that
is lost is a death of the engine: it is restarted, which begins at the gate.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any, Protocol

from triton_vllm.errors import SettingsError
from triton_vllm.topology import ray_cluster
from triton_vllm.topology.ray_cluster import Placement

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 15.0
_POLL_SECONDS = 0.5


class Cluster(Protocol):
    """What an engine's life asks of the machines that it runs on."""

    def wait_for_nodes(self) -> contextlib.AbstractContextManager[None]:
        """Hold the context in which the engine is started. Blocks, and may raise SettingsError."""

    async def watch(self, llm: Any) -> None:
        """End the engine's processes here when those elsewhere are lost. Until it is cancelled."""

    def close(self) -> None:
        """Wait for nobody any more: the model is being unloaded. Any thread."""


class SingleNode:
    """All of the engine is here."""

    def wait_for_nodes(self) -> contextlib.AbstractContextManager[None]:
        """Wait for nobody."""
        return contextlib.nullcontext()

    async def watch(self, llm: Any) -> None:
        """Return at once: Linux says when a process ends."""

    def close(self) -> None:
        """Do nothing."""


class RayCluster:
    """Machines that Ray runs the engine's workers on, and watches."""

    def __init__(
        self,
        workers: int,
        device: str,
        seconds: float,
        *,
        fits_here: bool,
    ) -> None:
        """Wait ``seconds`` at most until ``workers`` of Ray's ``device`` are free.

        ``fits_here``: this machine alone has them, and where no cluster is, vLLM starts one.
        """
        self._workers = workers
        self._device = device
        self._seconds = seconds
        self._closing = False
        self._placement: Placement | None = None
        self._fits_here = fits_here and not os.environ.get("RAY_ADDRESS")

    @contextlib.contextmanager
    def wait_for_nodes(self) -> Iterator[None]:
        """Wait for the devices, and hold the start, which waits for them what time is left.

        Raises SettingsError at the deadline: what there is of them.
        """
        since = reported = time.monotonic()
        for missing in self._answers():
            now = time.monotonic()
            if not missing:
                break
            if self._fits_here and missing.startswith("ConnectionError"):
                break
            if self._closing or now - since > self._seconds:
                raise self._too_late(missing)
            if now - reported > _REPORT_SECONDS or reported == since:
                reported = now
                logger.info(f"waiting for the Ray cluster: {missing}")
        with Placement.offered(self._seconds - (time.monotonic() - since)) as placement:
            self._placement = placement
            try:
                yield
            except Exception as error:
                if missing := placement.refused:
                    raise self._too_late(missing) from error
                raise
            finally:
                self._placement = None

    def _too_late(self, missing: str) -> SettingsError:
        if self._closing:
            return SettingsError("the model is being unloaded")
        return SettingsError(
            f'{missing}, after {self._seconds:g} s ("serving.cluster_join_timeout_seconds")'
        )

    def _answers(self) -> Iterator[str]:
        """Yield what is missing, empty if nothing, every half second."""
        context = multiprocessing.get_context("spawn")
        missing = "Ray has not answered yet"
        while True:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=ray_cluster.watch, args=(theirs, self._device), name="ray", daemon=True
            )
            process.start()
            theirs.close()
            try:
                while process.is_alive() or ours.poll():
                    if ours.poll(_POLL_SECONDS):
                        answer = ours.recv()
                        missing = ray_cluster.missing(answer, self._workers, self._device)
                    yield missing
            except EOFError:
                missing = "the process that asks Ray has died"
                yield missing
            finally:
                process.kill()
                process.join()
                ours.close()

    async def watch(self, llm: Any) -> None:
        """Return at once: Ray tells the engine when it has lost a node, and the engine ends."""

    def close(self) -> None:
        """Let ``wait_for_nodes`` fail."""
        self._closing = True
        if (placement := self._placement) is not None:
            placement.withdraw()

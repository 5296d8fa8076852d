"""What Ray is asked, in processes of their own: the one place that imports Ray.

The front end is no driver of Ray's, with its threads and its signals. A process asks what the
cluster has, before the engine's start; the engine core, which is a driver, waits for its places.
multiprocessing imports this file in the first one: keep it to the standard library.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PLACEMENT = "TRITON_VLLM_RAY_PLACEMENT"  # a folder: see Placement
_PERIOD = 2.0  # seconds between two questions
# The least that a wait for places is given: they take no time where all devices are free.
_LEAST_SECONDS = 10.0

Answer = str | tuple[dict[str, int], int]


def watch(connection: Connection, device: str) -> None:
    """Send what the cluster has, again and again, until the other end closes.

    A dict of the ``device``s of each node that lives, by its address, and the number of those that
    are free; or a string: what keeps Ray from answering. ``device`` is Ray's name, such as "GPU".
    """
    while True:
        try:
            connection.send(ask(device))
            if connection.poll(_PERIOD):
                connection.recv()
        except (EOFError, OSError):
            return


def ask(device: str) -> Answer:
    """Return what ``watch`` sends."""
    import ray

    try:
        if not ray.is_initialized():
            ray.init(
                address=os.environ.get("RAY_ADDRESS") or "auto",
                log_to_driver=False,
                logging_level="ERROR",
            )
        nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
        devices = {n["NodeManagerAddress"]: int(n["Resources"].get(device, 0)) for n in nodes}
        return devices, int(ray.available_resources().get(device, 0))
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def missing(answer: Answer, workers: int, device: str) -> str:
    """Return what the cluster lacks for so many workers, empty if nothing."""
    if isinstance(answer, str):
        return answer
    devices, free = answer
    if free >= workers:
        return ""
    nodes = ", ".join(f"{address} with {n}" for address, n in sorted(devices.items()))
    return (
        f"the Ray cluster has {free} of {workers} {device}s free, on "
        f"{len(devices)} node{'s' if len(devices) != 1 else ''} ({nodes})"
    )


class Placement:
    """How long the engine core may wait for its workers' places, and why it got none.

    The gate may have opened on what was so a moment ago: of a node that died, on devices that
    another engine took. vLLM would wait half an hour for them. The front end and the engine core
    have a folder for this, named by the environment; it goes when the front end stops waiting.
    """

    def __init__(self, folder: Path) -> None:
        """Use ``offered`` in the front end, ``of_environment`` in the engine core."""
        self._folder = folder

    @classmethod
    @contextlib.contextmanager
    def offered(cls, seconds: float) -> Iterator[Placement]:
        """Let the engine cores that are started meanwhile wait so long, or a little."""
        with tempfile.TemporaryDirectory(
            prefix="triton_vllm-", ignore_cleanup_errors=True
        ) as folder:
            (Path(folder) / "seconds").write_text(str(max(seconds, _LEAST_SECONDS)))
            os.environ[PLACEMENT] = folder
            try:
                yield cls(Path(folder))
            finally:
                del os.environ[PLACEMENT]

    @classmethod
    def of_environment(cls) -> Placement | None:
        """Return what the front end has offered; None if nothing."""
        return cls(Path(os.environ[PLACEMENT])) if PLACEMENT in os.environ else None

    def withdraw(self) -> None:
        """Let nobody wait any more."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "seconds").unlink()

    @property
    def refused(self) -> str:
        """What was missing when an engine core had waited in vain; empty if none has."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "missing").read_text(encoding="utf-8")
        return ""

    def wait(self, group: Any, device: str) -> None:
        """Wait for a placement group of Ray's. Raises TimeoutError: what is missing."""
        import ray

        try:
            seconds = float((self._folder / "seconds").read_text(encoding="utf-8"))
        except FileNotFoundError:
            seconds = 0.0
        reference, end = group.ready(), time.monotonic() + seconds
        while not ray.wait([reference], timeout=0.5)[0]:
            if time.monotonic() > end or not (self._folder / "seconds").exists():
                workers = len(group.bundle_specs)
                text = missing(ask(device), workers, device)
                text = text or f"Ray has no place for {workers} workers"
                with contextlib.suppress(OSError):  # the front end has gone
                    (self._folder / "missing").write_text(text, encoding="utf-8")
                raise TimeoutError(text)
        ray.get(reference)

"""The process that asks Ray what the cluster has: the one place that imports Ray.

A process of its own, so that the front end is no driver of Ray's, with its threads and its signals.
multiprocessing imports this file in it: keep it to the standard library.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

_PERIOD = 2.0  # seconds between two questions


def watch(connection: Connection, device: str) -> None:
    """Send what the cluster has, again and again, until the other end closes.

    A dict of the ``device``s of each node that lives, by its address, and the number of those that
    are free; or a string: what keeps Ray from answering. ``device`` is Ray's name, such as "GPU".
    """
    import ray

    def ask() -> tuple[dict[str, int], int]:
        if not ray.is_initialized():
            ray.init(
                address=os.environ.get("RAY_ADDRESS") or "auto",
                log_to_driver=False,
                logging_level="ERROR",
            )
        nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
        devices = {n["NodeManagerAddress"]: int(n["Resources"].get(device, 0)) for n in nodes}
        return devices, int(ray.available_resources().get(device, 0))

    while True:
        try:
            answer: object = ask()
        except Exception as error:
            answer = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        try:
            connection.send(answer)
            if connection.poll(_PERIOD):
                connection.recv()
        except (EOFError, OSError):
            return

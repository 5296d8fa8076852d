"""Processes that start as ``multiprocessing`` spawns one, but forked by the fork server.

The stub asks for its engine cores (fork_server.py), and an engine core for its workers.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import typing
from collections.abc import Mapping
from multiprocessing import context, forkserver, popen_forkserver, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.reduction import dump
from typing import Any

from triton_vllm.topology.fork_server_process import LENGTH

logger = logging.getLogger(__name__)

_FORK_SECONDS = 30.0  # for what takes a few milliseconds
# The CPUs of OpenMP's threads, where vLLM has GNU's library bind each of a worker's to one. A fork
# binds them itself (engine_modules.py), which would not last with more: the library ends threads
# that a smaller team does not need, and starts others later.
OPENMP_CPUS = "GOMP_CPU_AFFINITY"
_MOST_CPUS = 2
# What vLLM sets when it resolves a configuration or starts an engine core or a worker, and reads
# only then. Any other variable that has changed may have been read at the import.
_READ_LATE = {
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_WORLD_SIZE",
    "NUMEXPR_MAX_THREADS",
    "OMP_NUM_THREADS",
    "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
    "VLLM_OMP_NUM_THREADS_SET_BY_VLLM",
    "VLLM_SSM_CONV_STATE_LAYOUT",
}
_OURS = "TRITON_VLLM_"


class Forks:
    """What asks the fork server for processes."""

    def __init__(
        self, name: str, channel: socket.socket, server: Mapping[str, str], *same: Mapping[str, str]
    ) -> None:
        """Ask on ``channel`` a fork server whose environment is ``server``.

        What has been read with a variable's value in one of ``same`` is as good. ``name`` is what
        asks, for the log.
        """
        self._name = name
        self._channel = channel
        self._environments = server, *same

    def context(self, given: Any) -> Any:
        """Return a context whose processes are forked, where the ``given`` one spawns them."""
        return _ForkContext(self) if type(given) is context.SpawnContext else given

    def popen(self, process: Any) -> Any:
        """Start ``process``, a ``_ForkedProcess``: forked, else spawned, and the log says why."""
        try:
            self.check()
            return _Popen(self, process)
        except (OSError, EOFError, ValueError) as error:
            why = str(error) if type(error) is OSError else f"{type(error).__name__}: {error}"
        logger.warning(f"{self._name}: {process.name} imports vLLM on its own: {why}")
        return context.SpawnProcess._Popen(process)

    def check(self) -> None:
        """Raise OSError if the fork server may have read other variables than today's."""
        today, (server, *_) = os.environ, self._environments
        late = _READ_LATE | ({OPENMP_CPUS} - server.keys())  # what it has bound stays bound
        differing = sorted(
            name
            for name in (today.keys() | server.keys()) - late
            if today.get(name) not in (values.get(name) for values in self._environments)
            and not name.startswith(_OURS)
        )
        if differing:
            raise OSError(f"the fork server has other values of {', '.join(differing)}")
        if (cpus := len(today.get(OPENMP_CPUS, "").split())) > _MOST_CPUS:
            raise OSError(f"OpenMP binds its threads to {cpus} CPUs when it is loaded")

    def fork(self, descriptors: list[int]) -> dict[str, str]:
        """Ask for a child with duplicates of ``descriptors``; return its environment."""
        socket.send_fds(self._channel, [str(os.getpid()).encode()], descriptors)
        return dict(os.environ)


class _ForkedProcess(context.SpawnProcess):
    """A process that starts as one that is spawned, from the fork server."""

    def __init__(self, *args: Any, forks: Forks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forks = forks

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802
        return process._forks.popen(process)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_forks"}


class _ForkContext(context.SpawnContext):
    def __init__(self, forks: Forks) -> None:
        self._forks = forks

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: N802
        return _ForkedProcess(*args, forks=self._forks, **kwargs)


class _Popen(popen_forkserver.Popen):
    """A child of the fork server's, as multiprocessing has one of its own fork server's."""

    def __init__(self, forks: Forks, process: Any) -> None:
        self._forks = forks
        self._fds: list[int] = []
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        sent = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            dump(spawn.get_preparation_data(process.name), sent)
            dump(process, sent)
        finally:
            context.set_spawning_popen(None)
        status, child_status = os.pipe()
        child_data, data = os.pipe()
        alive = os.dup(data)  # the child's sign that this process lives
        self.sentinel = status
        self.finalizer = util.Finalize(self, _close, (alive, status))
        with open(data, "wb") as pipe:  # noqa: PTH123
            try:
                tracker = typing.cast(int, resource_tracker.getfd())
                environment = self._forks.fork([child_data, child_status, tracker, *self._fds])
            finally:
                os.close(child_data)
                os.close(child_status)
            if not wait([status], _FORK_SECONDS):
                raise TimeoutError("the fork server does not answer")
            self.pid = forkserver.read_signed(status)
            head = json.dumps({"environment": environment, "cpus": cpus}).encode()
            pipe.write(LENGTH.pack(len(head)) + head)
            pipe.write(sent.getbuffer())


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

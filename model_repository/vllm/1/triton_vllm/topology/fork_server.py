"""Starts the engine cores of this front end as forks of a process that has imported vLLM already.

The fork server (fork_server_process.py) is started before this process imports vLLM, and imports it
meanwhile. It stays, so that the engine that follows a dead one need not import vLLM either. Where
it is missing, or its environment is not the one that an engine core needs, the core is spawned.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Mapping
from multiprocessing import context, forkserver, popen_forkserver, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.reduction import dump
from typing import Any

from triton_vllm.errors import UnavailableError
from triton_vllm.topology.fork_server_process import LENGTH

logger = logging.getLogger(__name__)

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from triton_vllm.topology.fork_server_process import main; main()"
)
_IMPORT_SECONDS = 120.0  # then an engine core is spawned, which imports on its own
_FORK_SECONDS = 30.0  # for what takes a few milliseconds
_LOOK_SECONDS = 0.2  # between two looks whether the model is being unloaded
# What vLLM sets when it resolves a configuration or starts an engine core, and reads in the engine
# core only then. Any other variable that has changed may have been read at the import.
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


class NoForkServer:
    """None: engine cores are spawned, or are not of this front end's making."""

    def context(self, given: Any) -> Any:
        """Return the multiprocessing context for engine cores, in place of the ``given`` one."""
        return given

    def close(self) -> None:
        """Let a start that waits for the fork server fail: the model is unloaded. Any thread."""

    def stop(self) -> None:
        """End the fork server, and what it has forked."""


class ForkServer(NoForkServer):
    """A fork server of this process. Engine cores are started by one thread at a time."""

    def __init__(self, name: str, module: str, variables: Mapping[str, str]) -> None:
        """Start it: it imports ``module``, with ``variables`` added to the environment.

        ``name`` is the model's, for the log.
        """
        self._name = name
        self._module = module
        self._variables = dict(variables)
        self._unusable = ""
        self._closing = threading.Event()
        self._start()

    def _start(self) -> None:
        """Start the process. Linux ends it with the thread that calls this (child_process.py)."""
        self._given = os.environ | self._variables
        self._set: dict[str, str] | None = None  # what its imports have added to that
        self._has_forked = False
        self._channel, theirs = socket.socketpair()
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        program = [os.fsdecode(spawn.get_executable()), *flags, "-c", _PROGRAM]
        with theirs:
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno()), self._module, json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._given,
            )

    def context(self, given: Any) -> Any:
        """Return a context whose processes are forked, where the ``given`` one spawns them."""
        return _ForkServerContext(self) if type(given) is context.SpawnContext else given

    def popen(self, process: Any) -> Any:
        """Start ``process``, a ``_ForkedProcess``: forked, else spawned, and the log says why.

        Raises UnavailableError after ``close``.
        """
        try:
            self._await_imports()
            return _Popen(self, process)
        except (OSError, EOFError, ValueError) as error:
            why = self._unusable or f"{type(error).__name__}: {error}"
        logger.warning(f"{self._name}: {process.name} imports vLLM on its own: {why}")
        return context.SpawnProcess._Popen(process)

    def _await_imports(self) -> None:
        """Wait until it can fork. Raises OSError or EOFError when it cannot."""
        if self._unusable:
            raise OSError(self._unusable)
        if self._process.poll() is not None:
            logger.warning(f"{self._name}: the fork server has ended, and is started again")
            self._channel.close()
            self._start()
        if self._set is None:
            self._set = self._imported()
        if differing := _differing(self._given, self._set):
            self._unusable = f"the fork server has other values of {', '.join(differing)}"
            if not self._has_forked:
                self._process.kill()  # it would hold its memory for nothing
            raise OSError(self._unusable)

    def _imported(self) -> dict[str, str]:
        """Wait for the end of its imports; return the variables that they have set."""
        began = time.monotonic()
        while not wait([self._channel], _LOOK_SECONDS):
            if self._closing.is_set():
                raise UnavailableError("the model is being unloaded")
            if time.monotonic() - began > _IMPORT_SECONDS:
                raise TimeoutError(f"the fork server imports for {_IMPORT_SECONDS:g} s")
        with self._channel.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            raise EOFError("the fork server has died")
        if "error" in (said := json.loads(line)):
            self._unusable = said["error"]
            raise OSError(self._unusable)
        logger.info(
            f"{self._name}: the fork server imported vLLM beside that ({said['seconds']:.1f} s, "
            f"of which waited {time.monotonic() - began:.1f} s)"
        )
        return {k: v for k, v in said["environment"].items() if self._given.get(k) != v}

    def fork(self, descriptors: list[int]) -> dict[str, str]:
        """Ask for a child with duplicates of ``descriptors``; return its environment."""
        self._has_forked = True
        socket.send_fds(self._channel, [b"f"], descriptors)
        return os.environ | (self._set or {})

    def close(self) -> None:
        """Let a start that waits for the fork server fail: the model is unloaded. Any thread."""
        self._closing.set()

    def stop(self) -> None:
        """End the fork server, and what it has forked."""
        self._closing.set()
        self._process.kill()
        self._process.wait()
        self._channel.close()


def _differing(given: Mapping[str, str], by_imports: Mapping[str, str]) -> list[str]:
    """Return the variables that the fork server may have read with another value than today's.

    It was started with those ``given``, and its imports have set others, as those of an engine core
    would.
    """
    today = os.environ
    return sorted(
        name
        for name in given.keys() | today.keys()
        if today.get(name) not in (given.get(name), by_imports.get(name, given.get(name)))
        and name not in _READ_LATE
        and not name.startswith(_OURS)
    )


class _ForkedProcess(context.SpawnProcess):
    """A process that starts as one that is spawned, from the fork server."""

    def __init__(self, *args: Any, server: ForkServer, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._server = server

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802
        return process._server.popen(process)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_server"}


class _ForkServerContext(context.SpawnContext):
    def __init__(self, server: ForkServer) -> None:
        self._server = server

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # noqa: N802
        return _ForkedProcess(*args, server=self._server, **kwargs)


class _Popen(popen_forkserver.Popen):
    """A child of the fork server's, as multiprocessing has one of its own fork server's."""

    def __init__(self, server: ForkServer, process: Any) -> None:
        self._server = server
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
                environment = self._server.fork([child_data, child_status, tracker, *self._fds])
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

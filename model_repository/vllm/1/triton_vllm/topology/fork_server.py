"""Starts the engine cores of this front end as forks of a process that has imported vLLM already.

The fork server (fork_server_process.py) is started before this process imports vLLM, and imports it
meanwhile. It stays, so that the engine that follows a dead one need not import vLLM either. Where
it is missing, or its environment is not the one that an engine core needs, the core is spawned.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import spawn
from multiprocessing.connection import wait
from typing import Any

from triton_vllm.errors import UnavailableError
from triton_vllm.topology.forked_process import Forks

logger = logging.getLogger(__name__)

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from triton_vllm.topology.fork_server_process import main; main()"
)
_IMPORT_SECONDS = 120.0  # then an engine core is spawned, which imports on its own
_LOOK_SECONDS = 0.2  # between two looks whether the model is being unloaded


class NoForkServer:
    """None: processes are spawned, or are not of this front end's making."""

    def context(self, given: Any) -> Any:
        """Return the multiprocessing context for engine cores, in place of the ``given`` one."""
        return given

    def close(self) -> None:
        """Let a start that waits for the fork server fail: the model is unloaded. Any thread."""

    def stop(self) -> None:
        """End the fork server, and what it has forked."""


class ForkServer(Forks, NoForkServer):
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
        self._before = dict(os.environ)
        self._given = self._before | self._variables
        self._set: dict[str, str] | None = None  # what its imports have added to that
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

    def check(self) -> None:
        """Wait until it can fork. Raises OSError or EOFError if it cannot.

        Raises UnavailableError after ``close``.
        """
        if self._unusable:
            raise OSError(self._unusable)
        if self._process.poll() is not None:
            logger.warning(f"{self._name}: the fork server has ended, and is started again")
            self._channel.close()
            self._start()
        if self._set is None:
            self._set = self._imported()
            # What the resolution of a configuration is about to set has the value of before.
            allowed = self._given, self._given | self._set, self._before
            super().__init__(self._name, self._channel, *allowed)
        try:
            super().check()
        except OSError as error:
            self._unusable = str(error)
            self._channel.close()  # without children it ends now, as it held memory for nothing
            raise

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
        return super().fork(descriptors) | (self._set or {})

    def close(self) -> None:
        """Let a start that waits for the fork server fail: the model is unloaded. Any thread."""
        self._closing.set()

    def stop(self) -> None:
        """End the fork server, and what it has forked."""
        self._closing.set()
        self._process.kill()
        self._process.wait()
        self._channel.close()

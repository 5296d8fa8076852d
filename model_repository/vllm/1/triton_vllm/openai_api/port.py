"""A TCP port that one model has for itself, on which all of its front ends listen."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from triton_vllm.errors import SettingsError

# Triton loads a model that is loaded already before it ends the old instance, which has the port.
_IN_USE = "; a loaded model that has the port, this one included, must be unloaded first"


@contextlib.contextmanager
def bound_port(
    host: str, port: int, *, leads: bool, shared: bool, where: str
) -> Iterator[socket.socket]:
    """Hold a bound socket, not yet listening, until the context ends.

    ``shared``: several front ends listen, and the kernel spreads the connections over them
    (SO_REUSEPORT). The one that ``leads`` binds first and finds out whether another process, of
    whatever kind, has the port; the others bind after it. Raises SettingsError, one line.
    """
    with contextlib.ExitStack() as sockets:
        try:
            if leads:
                # The kernel keeps two models apart only when one of them listens. Until then,
                # while both load, a name does: of a socket that the kernel frees with the process.
                claim = sockets.enter_context(socket.socket(socket.AF_UNIX))
                claim.bind(f"\0triton_vllm-{os.getuid()}-{host}-{port}")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            bound = sockets.enter_context(socket.socket(family))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared and not leads)
            bound.bind((host, port))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        except OSError as error:
            in_use = "" if error.errno != errno.EADDRINUSE else _IN_USE
            raise SettingsError(f"{where}: {host}:{port}: {error.strerror}{in_use}") from None
        yield bound

"""A TCP port that one model has for itself, on which all of its front ends listen."""

from __future__ import annotations

import contextlib
import os
import socket

from triton_vllm.errors import SettingsError


class Port:
    """A port of this machine, bound, not yet listening."""

    def __init__(self, host: str, port: int, *, leads: bool, shared: bool, where: str) -> None:
        """Bind it. Raises SettingsError, one line, when it is in use or cannot be had.

        ``shared``: several front ends listen, and the kernel spreads the connections over them
        (SO_REUSEPORT). The one that ``leads`` comes first, and finds out whether anybody else, of
        whatever kind, has the port; the others bind when it has.
        """
        with contextlib.ExitStack() as undo:
            try:
                if leads:
                    # The kernel keeps two models apart only when one of them listens. Until then,
                    # while both load, a name does: of a socket that the kernel frees with us.
                    self._claim = socket.socket(socket.AF_UNIX)
                    undo.callback(self._claim.close)
                    self._claim.bind(f"\0triton_vllm-{os.getuid()}-{host}-{port}")
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                self.socket = socket.socket(family)
                undo.callback(self.socket.close)
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if shared and not leads:
                    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                self.socket.bind((host, port))
                if shared and leads:
                    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            except OSError as error:
                raise SettingsError(f"{where}: {host}:{port}: {error.strerror}") from None
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Give the port back."""
        self._undo.close()

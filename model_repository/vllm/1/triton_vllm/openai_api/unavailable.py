"""Answers on the OpenAI port while no server has it: 503 in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Callable

_MOST = 256  # connections that are being answered; more are closed
_LINGER_SECONDS = 2.0  # for a client to read the answer before its connection is closed


class UnavailableServer:
    """Takes the connections of a listening socket while it is open. Event loop only."""

    def __init__(
        self, port: socket.socket, certificate: ssl.SSLContext | None, why: Callable[[], str]
    ) -> None:
        """``port`` does not block; ``certificate`` is for TLS; ``why`` is what clients are told."""
        self._port = port
        self._certificate = certificate
        self._why = why
        self._answering: set[asyncio.Task[None]] = set()
        self._reopening: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Answer new connections."""
        asyncio.get_running_loop().add_reader(self._port, self._accept)

    def close(self) -> None:
        """Leave new connections to another process."""
        asyncio.get_running_loop().remove_reader(self._port)
        if self._reopening is not None:
            self._reopening.cancel()

    def _accept(self) -> None:
        # Not asyncio's own server: one that is closed forgets what it has just accepted.
        try:
            connection, _ = self._port.accept()
        except (BlockingIOError, ConnectionError):  # the other process or its client was faster
            return
        except OSError:  # no descriptor is free, and the next try would fail at once
            self.close()
            self._reopening = asyncio.get_running_loop().call_later(1, self.open)
            return
        if len(self._answering) >= _MOST:
            connection.close()
            return
        task = asyncio.create_task(self._answer(connection))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, connection: socket.socket) -> None:
        error = {"message": self._why(), "type": "ServiceUnavailableError", "code": 503}
        body = json.dumps({"error": {**error, "param": None}}).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._certificate,
                ssl_handshake_timeout=_LINGER_SECONDS if self._certificate else None,
            )
            with contextlib.closing(transport):
                transport.write(head.encode() + body)
                # Closed with a part of the request unread, TCP would drop the answer.
                await asyncio.wait_for(_until_end(reader), _LINGER_SECONDS)


async def _until_end(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass

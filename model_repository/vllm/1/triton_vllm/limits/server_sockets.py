"""How much waits between a process's threads, in its pairs of Unix sockets.

Linux tells each process about the Unix sockets of its network namespace, without privileges, as it
tells ``ss``: sock_diag(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

# linux/netlink.h, sock_diag.h and unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_MULTI, _NLM_F_DUMP = 0x1, 0x2, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED = 1 << 1
_SHOW_PEER, _SHOW_QUEUES = 0x4, 0x10
_HEADER = struct.Struct("=IHHII")  # of a message: length, type, flags, sequence number, port
_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, -, states, inode, show, cookie
_UNIX_DIAG_PEER, _UNIX_DIAG_RQLEN = 2, 4
_LENGTH = struct.Struct("=I")  # at the beginning of a message
_PEER = struct.Struct("=20xI8x2xHI")  # of a message: inode, first attribute, the peer's inode
_QUEUES = "=20xI8x2xH4xI{}x"  # a message: inode, first attribute, what its peer has not read
_QUEUES_BYTES = 44  # without what follows
_CODE = struct.Struct("=i")  # of an error, below zero; it follows the header
_END_SIZE = _HEADER.size + _CODE.size
_END = (_END_SIZE, _NLMSG_DONE, _NLM_F_MULTI)  # how the last message of an answer begins
_RECEIVE_BYTES = 1 << 16
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


class ServerSockets:
    """The pairs of Unix sockets of which a process holds both ends.

    ``capacity`` is what the buffer of a new socket holds, and ``cost`` what a small message takes
    of it: both in bytes of kernel memory.
    """

    def __init__(self, pid: int) -> None:
        """Prepare to look at the process ``pid``; raise OSError where the kernel does not tell."""
        self._pid = pid
        self._inodes: frozenset[int] = frozenset()
        self._diagnostics = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        writer, reader = socket.socketpair()
        with writer, reader:
            self.capacity = writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            writer.send(b"a small message")
            self.cost = dict(self._queues()).get(os.fstat(writer.fileno()).st_ino, 0)
        if not self.cost:
            self.close()
            raise OSError("the kernel does not show a socket's queue")

    def close(self) -> None:
        """Look no more."""
        self._diagnostics.close()

    def scan(self) -> None:
        """Find the pairs that the process has now. Raises OSError."""
        own = set()
        for entry in Path(f"/proc/{self._pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # one that has been closed since
                if found := _SOCKET_LINK.fullmatch(str(entry.readlink())):
                    own.add(int(found[1]))
        self._inodes = frozenset(
            inode for inode, peer in self._peers() if inode in own and peer in own
        )

    def fullest(self) -> int:
        """Return how many bytes wait in the fullest of the pairs found; 0 if there are none."""
        return max((n for inode, n in self._queues() if inode in self._inodes), default=0)

    def _queues(self) -> Iterator[tuple[int, int]]:
        """Yield each socket's inode, and the bytes that its peer has not read."""
        answer = self._ask(_SHOW_QUEUES)
        (length,) = _LENGTH.unpack_from(answer)  # of each message: a kernel may append attributes
        if length < _QUEUES_BYTES or len(answer) % length:
            raise OSError("the kernel shows the queues of sockets in an unknown form")
        form = _QUEUES.format(length - _QUEUES_BYTES)
        for inode, attribute, queued in struct.iter_unpack(form, answer):
            if attribute == _UNIX_DIAG_RQLEN:
                yield inode, queued

    def _peers(self) -> Iterator[tuple[int, int]]:
        """Yield the inodes of each socket and its peer."""
        answer, at = self._ask(_SHOW_PEER), 0
        while at < len(answer):
            (length,) = _LENGTH.unpack_from(answer, at)
            if length >= _PEER.size:
                inode, attribute, peer = _PEER.unpack_from(answer, at)
                if attribute == _UNIX_DIAG_PEER:
                    yield inode, peer
            at += length

    def _ask(self, show: int) -> bytes:
        """Return the messages about all connected Unix sockets. Raises OSError."""
        request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ESTABLISHED, 0, show, 0, 0)
        length, flags = _HEADER.size + len(request), _NLM_F_REQUEST | _NLM_F_DUMP
        self._diagnostics.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, flags, 0, 0) + request)
        answer = b""
        while True:
            part = self._diagnostics.recv(_RECEIVE_BYTES)
            if _HEADER.unpack_from(part)[1] == _NLMSG_ERROR:
                (code,) = _CODE.unpack_from(part, _HEADER.size)
                raise OSError(-code, os.strerror(-code))
            answer += part
            if _HEADER.unpack_from(answer, len(answer) - _END_SIZE)[:3] == _END:
                return answer[:-_END_SIZE]

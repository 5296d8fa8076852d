"""How much waits between a process's threads, in its pairs of Unix sockets.

Linux tells each process about the Unix sockets of its network namespace, without privileges, as it
tells ``ss``: sock_diag(7).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

# linux/netlink.h, sock_diag.h and unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_MULTI, _NLM_F_DUMP = 0x1, 0x2, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED = 1 << 1
_SHOW_PEER, _SHOW_QUEUES = 0x4, 0x10
_UNIX_DIAG_PEER, _UNIX_DIAG_RQLEN = 2, 4
_NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # of a message: length, type, flags, sequence number, port
_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, -, states, inode, show, cookie
_PEER = struct.Struct("=20xI8x2xHI")  # of a message: inode, first attribute, the peer's inode
_QUEUES = struct.Struct("=20xI8x2xHII")  # of one: inode, first attribute, unread here and there
_CODE = struct.Struct("=i")  # of an error, below zero; it follows the header
_END_SIZE = _HEADER.size + _CODE.size
_END = (_END_SIZE, _NLMSG_DONE, _NLM_F_MULTI)  # how the last message of a dump begins
_ANSWER_BYTES, _DUMP_BYTES = 256, 1 << 16
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")
_NOTICE_BYTES = 17  # of a message from thread to thread: libevhtp's evthr_cmd
_FIRST_LOOKS = 20  # at all pairs
_OTHERS = 2
_IN_USE_SECONDS = 60.0  # since something was seen to wait
_ANSWER_TIME = struct.pack("@ll", 1, 0)  # a timeval: the kernel answers at once


class ServerSockets:
    """The pairs of Unix sockets of which a process holds both ends.

    ``capacity`` is what the buffer of a new socket holds, and ``cost`` what a small message takes
    of it: both in bytes of kernel memory.
    """

    def __init__(self, pid: int) -> None:
        """Prepare to look at the process ``pid``; raise OSError where the kernel does not tell."""
        self._pid = pid
        self._ends: set[int] = set()  # one of each pair
        self._turns: Iterator[int] = iter(())
        self._first_looks = 0  # left
        self._in_use: dict[int, float] = {}  # until when
        self._diagnostics = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        self._diagnostics.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIME)
        writer, reader = socket.socketpair()
        with writer, reader:
            self.capacity = writer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            writer.send(b"a small message")
            told = self._queues([os.fstat(writer.fileno()).st_ino])
            self.cost = sum(sent for _, _, sent in told)
        if not self.cost:
            self.close()
            raise OSError("the kernel does not show what waits in a socket")

    def close(self) -> None:
        """Look no more."""
        self._diagnostics.close()

    def scan(self) -> None:
        """Find the pairs that the process has now. Raises OSError."""
        own = set()
        for entry in Path(f"/proc/{self._pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # one that has been closed since
                if link := _SOCKET_LINK.fullmatch(str(entry.readlink())):
                    own.add(int(link[1]))
        ends = {inode for inode, peer in self._peers() if inode in own and inode < peer in own}
        if ends != self._ends:
            self._ends, self._turns = ends, itertools.cycle(sorted(ends))
            self._first_looks = _FIRST_LOOKS

    def fullest(self) -> int:
        """Return how many bytes wait in the fullest of the pairs found; 0 if there are none.

        The first looks ask about all pairs. Later ones ask about those that were in use lately, and
        about two others in turn, as each takes 10 µs. Raises OSError.
        """
        now = time.monotonic()
        if self._first_looks:
            self._first_looks -= 1
            asked = self._ends
        else:
            asked = {inode for inode, until in self._in_use.items() if now < until}
            asked.update(itertools.islice(self._turns, _OTHERS))
        fullest = 0
        for inode, unread, sent in self._queues(asked):
            waiting = max(sent, unread // _NOTICE_BYTES * self.cost)
            if waiting:
                self._in_use[inode] = now + _IN_USE_SECONDS
                fullest = max(fullest, waiting)
        return fullest

    def _queues(self, inodes: Iterable[int]) -> list[tuple[int, int, int]]:
        """Return the inode of each open socket, and the bytes that it and its peer have not read.

        The former are those of the messages, the latter those of kernel memory. Raises OSError.
        """
        requests = [_request(inode, _SHOW_QUEUES, 0) for inode in inodes]
        if requests:
            self._diagnostics.send(b"".join(requests))
        answers = [self._diagnostics.recv(_ANSWER_BYTES) for _ in requests]
        told = [_QUEUES.unpack_from(answer) for answer in answers if len(answer) >= _QUEUES.size]
        return [(inode, *queues) for inode, what, *queues in told if what == _UNIX_DIAG_RQLEN]

    def _peers(self) -> Iterator[tuple[int, int]]:
        """Yield the inodes of each connected socket and its peer. Raises OSError."""
        dump, at = self._dump(_request(0, _SHOW_PEER, _NLM_F_DUMP)), 0
        while at < len(dump):
            length, *_ = _HEADER.unpack_from(dump, at)
            if length >= _PEER.size:
                inode, attribute, peer = _PEER.unpack_from(dump, at)
                if attribute == _UNIX_DIAG_PEER:
                    yield inode, peer
            at += length

    def _dump(self, request: bytes) -> bytes:
        """Return the messages that answer a request for all sockets. Raises OSError."""
        self._diagnostics.send(request)
        messages = b""
        while True:
            part = self._diagnostics.recv(_DUMP_BYTES)
            if _HEADER.unpack_from(part)[1] == _NLMSG_ERROR:
                (code,) = _CODE.unpack_from(part, _HEADER.size)
                raise OSError(-code, os.strerror(-code))
            messages += part
            if _HEADER.unpack_from(messages, len(messages) - _END_SIZE)[:3] == _END:
                return messages[:-_END_SIZE]


def _request(inode: int, show: int, flags: int) -> bytes:
    content = (socket.AF_UNIX, 0, 0, _ESTABLISHED, inode, show, _NO_COOKIE, _NO_COOKIE)
    length = _HEADER.size + _REQUEST.size
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 0, 0)
    return header + _REQUEST.pack(*content)

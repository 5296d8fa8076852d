"""How full the queues between a process's threads are that are pairs of Unix sockets.

Linux reports on the Unix sockets of a network namespace to each process in it, without privileges,
as it does to ``ss``: sock_diag(7).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

# linux/netlink.h, sock_diag.h and unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ESTABLISHED = 1 << 1
_SHOW_PEER, _SHOW_QUEUES, _SHOW_MEMORY = 0x4, 0x10, 0x20
_PEER_IS, _QUEUES_ARE, _MEMORY_IS = 2, 4, 5  # attributes of a message
_NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # of a message: length, type, flags, sequence number, port
_REQUEST = struct.Struct("=BBHIIIII")  # family, protocol, -, states, inode, show, cookie
_PEER = struct.Struct("=20xI8x2xHI")  # of a message: inode, attribute, the peer's inode
# Of a message: inode, attribute, what it has not read, what its peer has not read, attribute, the
# size of its buffer.
_QUEUES = struct.Struct("=20xI8x2xHII2xH12xI")
_CODE = struct.Struct("=i")  # of an error, below zero; it follows the header
_END = (_HEADER.size + _CODE.size, _NLMSG_DONE)  # how the last message of a dump begins
_ANSWER_BYTES, _DUMP_BYTES = 256, 1 << 16
_ANSWER_TIME = struct.pack("@ll", 1, 0)  # a timeval: the kernel answers at once
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")
_NOTICE_BYTES = 17  # of a message between threads: libevhtp's evthr_cmd
_PAIRS_PER_LOOK = 16  # tritonserver has ten, unless it is given more HTTP threads
_IN_USE_SECONDS = 60.0  # since a message was seen to wait
_AT_ONCE = 64  # requests to the kernel, whose answers its buffer has to hold


class ServerSockets:
    """The pairs of Unix sockets of which a process holds both ends.

    ``cost`` is the kernel memory that a small message takes while it waits, in bytes.
    """

    def __init__(self, pid: int) -> None:
        """Find the pairs of the process ``pid``. Raises OSError if the kernel does not report."""
        self._pid = pid
        self._ends: frozenset[int] = frozenset()  # one of each pair
        self._rotation: Iterator[int] = iter(())
        self._in_use: dict[int, float] = {}  # until when
        with contextlib.ExitStack() as stack:
            self._diagnostics = _open()
            stack.callback(self.close)
            self.cost = self._measure_cost()
            self.scan()
            stack.pop_all()

    def close(self) -> None:
        """Close the netlink socket."""
        self._diagnostics.close()

    def reset(self) -> None:
        """Forget answers that have not been read."""
        self.close()
        self._diagnostics = _open()

    def _measure_cost(self) -> int:
        writer, reader = socket.socketpair()
        with writer, reader:
            writer.send(bytes(_NOTICE_BYTES))
            cost = sum(sent for _, _, sent, _ in self._ask([os.fstat(writer.fileno()).st_ino]))
        if not cost:
            raise OSError("the kernel does not report what waits in a socket")
        return cost

    def scan(self) -> None:
        """Find the pairs that the process has now. Raises OSError."""
        own = set()
        for entry in Path(f"/proc/{self._pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # one that has been closed since
                if link := _SOCKET_LINK.fullmatch(str(entry.readlink())):
                    own.add(int(link[1]))
        # The second end, made later: libevhtp writes to it and reads from the first.
        ends = frozenset(
            inode for inode, peer in self._peers() if own >= {inode, peer} and inode > peer
        )
        if ends != self._ends:
            self._ends, self._rotation = ends, itertools.cycle(sorted(ends))
            self._in_use = {inode: until for inode, until in self._in_use.items() if inode in ends}

    def fullest(self) -> tuple[int, int]:
        """Return the bytes that wait in the fullest of the pairs, and the size of its buffer.

        A look is at 16 pairs, since each takes 6 µs, and more where a namespace has thousands of
        sockets. If there are more pairs, it is at those that were in use lately, and at others in
        turn. Returns (0, 0) if there are no pairs. Raises OSError.
        """
        now = time.monotonic()
        asked: Collection[int] = self._ends
        if len(asked) > _PAIRS_PER_LOOK:
            asked = {inode for inode, until in self._in_use.items() if now < until}
            others = max(2, _PAIRS_PER_LOOK - len(asked))
            asked.update(itertools.islice(self._rotation, others))
        fullest = (0, 0)
        for inode, unread, sent, size in self._ask(asked):
            waiting = max(sent, unread // _NOTICE_BYTES * self.cost)  # if it is the other end
            if waiting:
                self._in_use[inode] = now + _IN_USE_SECONDS
            fullest = max(fullest, (waiting, size))
        return fullest

    def _ask(self, inodes: Iterable[int]) -> list[tuple[int, int, int, int]]:
        """Return of each open socket what it and its peer have not read, and its buffer's size.

        All in bytes: the first of the messages, the others of kernel memory. Raises OSError.
        """
        requests = [_request(inode, _SHOW_QUEUES | _SHOW_MEMORY, 0) for inode in inodes]
        found = []
        for start in range(0, len(requests), _AT_ONCE):
            part = requests[start : start + _AT_ONCE]
            self._diagnostics.send(b"".join(part))
            for _ in part:
                answer = self._diagnostics.recv(_ANSWER_BYTES)
                if len(answer) >= _QUEUES.size and _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
                    inode, queues, unread, sent, memory, size = _QUEUES.unpack_from(answer)
                    if (queues, memory) == (_QUEUES_ARE, _MEMORY_IS):
                        found.append((inode, unread, sent, size))
        return found

    def _peers(self) -> Iterator[tuple[int, int]]:
        """Yield the inodes of each connected socket and its peer. Raises OSError."""
        self._diagnostics.send(_request(0, _SHOW_PEER, _NLM_F_DUMP))
        for message in self._messages():
            if len(message) >= _PEER.size:
                inode, attribute, peer = _PEER.unpack_from(message)
                if attribute == _PEER_IS:
                    yield inode, peer

    def _messages(self) -> Iterator[bytes]:
        """Yield the messages of a dump. Raises OSError."""
        while True:
            part, at = self._diagnostics.recv(_DUMP_BYTES), 0
            while at < len(part):
                length, kind, *_ = _HEADER.unpack_from(part, at)
                if kind == _NLMSG_ERROR:
                    (code,) = _CODE.unpack_from(part, at + _HEADER.size)
                    raise OSError(-code, os.strerror(-code))
                if (length, kind) == _END:
                    return
                yield part[at : at + length]
                at += length


def _open() -> socket.socket:
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    opened = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIME)
    return opened


def _request(inode: int, show: int, flags: int) -> bytes:
    content = (socket.AF_UNIX, 0, 0, _ESTABLISHED, inode, show, _NO_COOKIE, _NO_COOKIE)
    length = _HEADER.size + _REQUEST.size
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | flags, 0, 0)
    return header + _REQUEST.pack(*content)

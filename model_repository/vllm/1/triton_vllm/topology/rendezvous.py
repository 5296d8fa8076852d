"""The folder in which the front ends of a model find each other, its locks, and files they share.

Locks are POSIX record locks: the kernel drops them with the process, so no crashed process looks
alive.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from triton_vllm.errors import SettingsError


def rendezvous_dir(model: str, version: str, engine: str = "") -> Path:
    """Return the folder of the front ends of this model of this server; create it.

    Each ``engine`` of a model with several has its own folder.

    The server is the parent process; its start time tells it from an earlier one with the same id.
    Folders of servers that have ended are removed. A server of another container, whose process is
    not visible here, is recognized by its locks.
    """
    root = Path(tempfile.gettempdir()) / f"triton_vllm-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise SettingsError(f"{root}: belongs to another user; remove it or set TMPDIR")
    for server in root.iterdir():
        pid, _, started = server.name.partition("-")
        if pid.isdigit() and _start_time(int(pid)) != started and not _is_inhabited(server):
            shutil.rmtree(server, ignore_errors=True)
    server = root / f"{os.getppid()}-{_start_time(os.getppid())}"
    place = server / model / (f"{version}.{engine}" if engine else version)
    place.mkdir(parents=True, exist_ok=True)
    return place


def _start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot (proc(5), field 22)."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    return None


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made again if something has tidied it up."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def is_held(slot: Path) -> bool:
    """Return whether a running process holds the slot.

    Never call it for the own slot: closing the file here would drop the lock.
    """
    try:
        with slot.open("r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:  # another front end has just cleaned up
        return False
    except OSError:
        return True
    return False


def map_numbers(path: Path, count: int) -> mmap.mmap:
    """Map a file of ``count`` numbers of 64 bits, at first 0, that other processes map, too.

    Raises OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(file, 0, count * 8)  # a write to a full disk would end the process
        return mmap.mmap(file, count * 8)
    finally:
        os.close(file)


def _is_inhabited(server: Path) -> bool:
    """Return whether a slot is held, as by a container with the same temporary directory."""
    try:
        return any(is_held(slot) for slot in server.glob("*/*/*-of-*/slot-*"))
    except FileNotFoundError:
        return True  # its owner or another front end is changing it

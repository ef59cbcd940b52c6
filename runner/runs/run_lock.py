"""A folder that one process works on: locked by the operating system, which frees it when the process dies.

The lock is a POSIX record lock on the file `.lock` in the folder. It is not inherited by forked processes, such as
those of a data loader, and it holds over machines that share the folder by NFS. A process loses such a lock as soon as
it closes any descriptor of the file, so that within a process every folder is opened once and counted.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"
TRY_SECONDS, PAUSE_SECONDS = 0.1, 0.02  # `is_held` of another process has the lock for a moment

_held: dict[str, list[int]] = {}  # by the folder's real path: the descriptor, and how often it is held
_guard = threading.RLock()


class Taken(ValueError):
    """Another process works on the folder."""


@contextmanager
def hold(folder: Path, *, wait_seconds: float = 0) -> Iterator[None]:
    """Have the folder, which must exist, for this process; within it as often as need be.

    Raises Taken if another process has it and still does after `wait_seconds`, and OSError if it cannot be written
    or its file system has no locks.
    """
    key = os.path.realpath(folder)
    with _guard:
        if key in _held:
            _held[key][1] += 1
        else:
            _held[key] = [_locked(Path(folder), wait_seconds), 1]
    try:
        yield
    finally:
        with _guard:
            if key in _held:  # a forked child, which has nothing, may leave the block too
                _held[key][1] -= 1
                if _held[key][1] == 0:
                    os.close(_held.pop(key)[0])


def is_held(folder: Path) -> bool:
    """Whether a process, this one or another, has the folder; takes nothing and writes nothing."""
    with _guard:
        if os.path.realpath(folder) in _held:
            return True
        try:
            descriptor = os.open(Path(folder) / FILE, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _locked(folder: Path, wait_seconds: float) -> int:
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + max(wait_seconds, TRY_SECONDS)
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                break
            time.sleep(PAUSE_SECONDS)
        except OSError:
            os.close(descriptor)
            raise
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    os.close(descriptor)
    raise Taken(f"{folder}: another process works on it ({holder}).")


def _forget() -> None:
    """In a forked child, to which the parent's locks do not belong."""
    global _guard
    _guard = threading.RLock()
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)

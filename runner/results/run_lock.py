"""A lock on a run's folder that the operating system frees when the process dies.

It is a POSIX record lock on the file `.lock` in the folder. Forked processes, such as those of a data loader, do not
inherit it, and it works across machines that share the folder by NFS. A process loses such a lock when it closes any
descriptor of the file, so a process opens each folder's file once and counts its holders.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runner.files.atomic import open_unlinked
from runner.files.readers import is_there

LOCK_FILE = ".lock"
TRY_SECONDS, PAUSE_SECONDS = 0.1, 0.02  # `is_held` in another process takes the lock for a moment

_held: dict[str, _Lock] = {}  # by the folder's real path
_guard = threading.RLock()


class Taken(ValueError):
    """Another process holds the folder's lock."""


@dataclass
class _Lock:
    """An open lock file, how often this process holds it, and whether the file was created for it."""

    descriptor: int
    is_new: bool
    count: int = 1

    def sign(self) -> None:
        """Write the holder into the file, for the message of other processes; the file then stays."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self.is_new = False

    def release(self, file: Path) -> None:
        """Free the lock and remove the file, if it was created for the lock and not signed."""
        if self.is_new:
            file.unlink(missing_ok=True)  # before the lock is freed; see `_locked`
        os.close(self.descriptor)


@contextmanager
def hold(folder: Path, *, wait_seconds: float = 0, signed: bool = True) -> Iterator[None]:
    """Hold the lock of an existing folder; nested calls in one process are allowed.

    Unless `signed`, no byte of the folder changes; see `sign`. Raises Taken if another process still holds the lock
    after `wait_seconds`, and OSError if the folder cannot be written or its file system has no locks.
    """
    key = os.path.realpath(folder)
    with _guard:
        if key in _held:
            _held[key].count += 1
        else:
            _held[key] = _locked(Path(folder), wait_seconds)
            if signed:
                _held[key].sign()
    try:
        yield
    finally:
        with _guard:
            if key in _held:  # a forked child, which holds nothing, may leave the block too
                _held[key].count -= 1
                if _held[key].count == 0:
                    _held.pop(key).release(Path(key, LOCK_FILE))


def sign(folder: Path) -> None:
    """Write into the folder's lock file that this process holds it; does nothing if it does not."""
    with _guard:
        lock = _held.get(os.path.realpath(folder))
        if lock is not None:
            lock.sign()


def is_held(folder: Path) -> bool:
    """Whether this or another process holds the folder's lock; writes nothing."""
    with _guard:
        if os.path.realpath(folder) in _held:
            return True
        try:
            descriptor = os.open(Path(folder) / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # no file, or a link, which no run creates
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file that cannot be locked is not held
            return False
        finally:
            os.close(descriptor)
    return False


def _locked(folder: Path, wait_seconds: float) -> _Lock:
    end = time.monotonic() + max(wait_seconds, TRY_SECONDS)
    while True:
        is_new = not is_there(folder / LOCK_FILE)
        descriptor = open_unlinked(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if time.monotonic() > end:
                raise Taken(f"{folder}: another process works on it ({holder}).") from None
            time.sleep(PAUSE_SECONDS)
        except OSError:
            _Lock(descriptor, is_new).release(folder / LOCK_FILE)
            raise
        else:
            if _is_file(descriptor, folder / LOCK_FILE):
                return _Lock(descriptor, is_new)
            os.close(descriptor)  # its process has removed the file meanwhile


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Drop the parent's locks in a forked child."""
    global _guard
    _guard = threading.RLock()
    for lock in _held.values():
        os.close(lock.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)

"""Calls that change files, counted in a child: at the n-th one it is killed, or told that the disk is full."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate"}
GROWS = {"open", "write", "fsync", "os.mkdir", "os.link", "os.symlink"}  # what a full disk refuses
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


Decision = OSError | int | None  # of a call: the error that it raises, the signal that the process dies of, or neither
Act = Callable[[int, str, str], Decision]  # of its number, from 1, its name and the path


@dataclass(frozen=True)
class Stop:
    """The process dies by SIGKILL at call number `at`."""

    at: int

    def __call__(self, number: int, call: str, path: str) -> Decision:
        return signal.SIGKILL if number == self.at else None


@dataclass(frozen=True)
class Refuse:
    """Call number `at` raises the error `code`; if it lasts, so does each that follows and that such a disk refuses."""

    at: int
    code: int
    lasts: bool = True

    def __str__(self) -> str:
        return f"{errno.errorcode[self.code]} {'from' if self.lasts else 'at'} call {self.at}{' on' * self.lasts}"

    def __call__(self, number: int, call: str, path: str) -> Decision:
        is_met = number == self.at or (number > self.at and self.lasts)
        if is_met and (call in GROWS or self.code not in (errno.ENOSPC, errno.EDQUOT)):
            return OSError(self.code, os.strerror(self.code), path)
        return None


def watched(call: Callable[[], object], folder: Path, log: Path, act: Act | None = None) -> Callable[[], object]:
    """`call`, to be called in a forked child, whose changes of files below `folder` are written to `log`, one a line.

    `act` decides on each before it happens; a write that is not to succeed brings half of its bytes to the file. Files
    are seen where Python opens, writes, renames, links, removes and syncs them; what C writes by itself is not.
    """

    def run() -> None:
        _Watch(folder, log, act).install()
        call()

    return run


def number_of_calls(log: Path) -> int:
    """How many calls a whole run made."""
    return len(log.read_bytes().splitlines()) if log.exists() else 0


class _Watch:
    def __init__(self, folder: Path, log: Path, act: Act | None) -> None:
        self.folder, self.act, self.number = os.path.realpath(folder), act, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.pid = os.getpid()

    def install(self) -> None:
        """From here on, for the rest of this process."""
        original, fsync, watch = io.open, os.fsync, self

        class Watched(io.FileIO):
            def write(self, data: bytes) -> int:
                half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
                watch.see("write", self.name, lambda: super(Watched, self).write(half))
                return super().write(data)

        def open_watched(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **more):
            if isinstance(file, int) or not set(mode) & set("wax+") or not watch.is_inside(file):
                return original(file, mode, buffering, encoding, errors, newline, **more)
            raw = Watched(os.fspath(file), mode.replace("b", "").replace("t", ""), **more)
            binary = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

        def fsync_watched(file) -> None:
            number = file if isinstance(file, int) else file.fileno()
            watch.see("fsync", os.readlink(f"/proc/self/fd/{number}"))
            fsync(number)

        io.open = builtins.open = open_watched
        os.fsync = fsync_watched
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open" and arguments[2] & WRITING:
            self.see("open", arguments[0])
        elif event in CHANGES:
            self.see(event, arguments[1] if event == "os.rename" else arguments[0])

    def see(self, call: str, path: object, part: Callable[[], object] = lambda: None) -> None:
        """Count a call and do as was decided; of one that is not to succeed `part` is done."""
        if os.getpid() != self.pid or not self.is_inside(path):
            return
        self.number += 1
        name = os.fsdecode(path)
        os.write(self.log, f"{call} {name}\n".encode(errors="backslashreplace"))
        decision = self.act(self.number, call, name) if self.act else None
        if decision is not None:
            part()
        if isinstance(decision, OSError):
            raise decision
        if decision is not None:
            os.kill(os.getpid(), decision)

    def is_inside(self, path: object) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)

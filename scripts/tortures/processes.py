"""Commands as processes of their own: forked from this warm one, or spawned; watched until nothing of them is left.

A forked child has torch and the runner imported already, so that a command takes a tenth of a second to be refused and
less than a second to train. That is honest as long as this process has run nothing of torch (no threads, no backward
pass); a launcher, whose ranks start anew, is spawned.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import resource
import runpy
import shlex
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.005
GRACE_SECONDS = 15.0  # in which what a command started must end after it
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of Linux: a process whose parent dies becomes a child of this one
FIRST_FREE_DESCRIPTOR, LAST_DESCRIPTOR = 3, 4096
MORE_MEMORY = 3 * 2**30  # bytes of addresses that a command may take beside those of this process


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is negative for a signal, None if it was still there at its deadline."""

    command: str
    code: int | None
    out: str
    err: str
    seconds: float
    left: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.out + self.err


class Running:
    """A command at work, in a session of its own; its output goes to files in `records`."""

    def __init__(self, pid: int, command: str, records: Path, others: frozenset[int]) -> None:
        self.pid, self.command, self.records, self._others = pid, command, records, others
        self._started, self._status = time.monotonic(), None

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return _read(self.records / "out")

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end; whether it came."""
        end = time.monotonic() + seconds
        while not self.is_over:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def send(self, number: int, to: int | None = None) -> None:
        """Send a signal to the process, or to one that it started, and to it alone."""
        if to is None and self.is_over:
            return  # its number may be another's
        with suppress(ProcessLookupError):
            os.kill(to or self.pid, number)

    def end(self, seconds: float) -> Ended:
        """Wait for its end, at most so long; then for that of all it started. What is left is named and killed."""
        try:
            in_time = self.wait(seconds)
            taken = time.monotonic() - self._started
            patience = time.monotonic() + (GRACE_SECONDS if in_time else 0)
            while (left := self.descendants()) and time.monotonic() < patience:
                time.sleep(POLL_SECONDS)
            names = tuple(filter(None, map(_name, left))) if in_time else ()
        finally:  # after Ctrl-C, too
            self.kill_all()
        code = os.waitstatus_to_exitcode(self._status) if in_time else None
        return Ended(self.command, code, self.out, _read(self.records / "err"), taken, names)

    def descendants(self) -> set[int]:
        """The processes that it started and that are still at work: below it, or orphans that came to this process."""
        parents = _parents()
        found, frontier = set(), {os.getpid()}
        while frontier:
            frontier = {pid for pid, parent in parents.items() if parent in frontier} - found - self._others
            found |= frontier
        for pid in found - {self.pid}:
            if parents[pid] == os.getpid():
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return {pid for pid in found if _name(pid)} - {self.pid}

    def kill_all(self) -> None:
        """End it, and all that it started."""
        for _ in range(100):
            doomed = self.descendants() | (set() if self.is_over else {self.pid})
            if not doomed:
                return
            for pid in doomed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)


def adopt_orphans() -> None:
    """Let processes whose parents die come to this one, which then finds them; without effect off Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)


def runner_command(arguments: tuple[str, ...]) -> Callable[[], object]:
    """`python -m runner ARGUMENTS`, to be called in a forked child."""

    def call() -> None:
        from runner.__main__ import main

        sys.argv = ["runner", *arguments]
        main()

    return call


def script_command(name: str, arguments: tuple[str, ...]) -> Callable[[], object]:
    """`python scripts/NAME.py ARGUMENTS`, to be called in a forked child."""

    def call() -> None:
        path = str(REPOSITORY / "scripts" / f"{name}.py")
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")

    return call


def fork(
    call: Callable[[], object], command: str, folder: Path, records: Path, environment: Mapping[str, str] | None = None
) -> Running:
    """Start `call` in a forked child whose working directory is `folder`."""
    others = frozenset(_children())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: these here are idle
        pid = os.fork()
    if pid == 0:
        _be_a_command(call, folder, records, environment or {})
    return Running(pid, command, records, others)


def spawn(
    arguments: tuple[str, ...], folder: Path, records: Path, environment: Mapping[str, str] | None = None
) -> Running:
    """Start `python -m runner ARGUMENTS` in a new interpreter."""
    others = frozenset(_children())
    with (records / "out").open("w") as out, (records / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    process.returncode = 0  # it is waited for here, not there
    return Running(process.pid, as_typed(arguments), records, others)


def command_line(pid: int) -> str:
    """What a process was started with; empty where it is gone."""
    return _read(Path("/proc", str(pid), "cmdline")).replace("\0", " ").strip()


def as_typed(arguments: tuple[str, ...]) -> str:
    """The runner's command line for a shell."""
    return shlex.join(["python", "-m", "runner", *arguments])


def _be_a_command(call: Callable[[], object], folder: Path, records: Path, environment: Mapping[str, str]) -> NoReturn:
    """What a new interpreter would do around `call`, from its working directory and streams to its exit code."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        opened = [os.open(os.devnull, os.O_RDONLY)]
        opened += [os.open(records / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("out", "err")]
        for number, descriptor in enumerate(opened):
            os.dup2(descriptor, number)
        os.closerange(FIRST_FREE_DESCRIPTOR, LAST_DESCRIPTOR)
        sys.stdin = open(0)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        os.chdir(folder)
        _limit_memory()
        os.environ.update(environment)
        warnings.resetwarnings()
        code = _exit_code(call)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _limit_memory() -> None:
    """A command that asks for too much is to fail alone, not the machine."""
    now = int(_read(Path("/proc/self/statm")).split()[0] or 0) * resource.getpagesize()
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + MORE_MEMORY, now + MORE_MEMORY))


def _exit_code(call: Callable[[], object]) -> int:
    try:
        call()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as an interpreter shows it
        traceback.print_exc()
        return 1
    return 0


def _parents() -> dict[int, int]:
    """Each process of the machine and its parent."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (text := _read(Path("/proc", entry, "stat"))):
            parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    return parents


def _children() -> set[int]:
    return {pid for pid, parent in _parents().items() if parent == os.getpid()}


def _name(pid: int) -> str | None:
    """The command line of a process; None if it is dead, though nobody has asked for its exit code."""
    text = _read(Path("/proc", str(pid), "stat"))
    if not text or text.rpartition(")")[2].split()[0] in "ZX":
        return None
    return command_line(pid)[-100:] or text.partition(")")[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""

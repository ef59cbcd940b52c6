"""Taking the signals by which a user or a cluster asks a process to end."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # the exit code
AT_ONCE_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for the loop to come to a point at which it looks
UNWINDING_SECONDS = 3.0  # for an exception to come out of it


@contextmanager
def taken_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler` take SIGINT and SIGTERM in this context; outside the main thread it cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def raised() -> Iterator[None]:
    """In this context SIGTERM raises KeyboardInterrupt as SIGINT does; of several that come together the first."""
    last = -math.inf

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > AT_ONCE_SECONDS:
            raise KeyboardInterrupt

    with taken_by(interrupt):
        yield


class Asked(Exception):
    """A signal asked a run to end, where all that it has done so far can be written."""


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets `requested`, for which the loop looks between its steps.

    KeyboardInterrupt is raised instead for a later SIGINT, and where the loop does not look within `GRACE_SECONDS`, or
    the time that it asked for. A process that is `alone` and not in a step then ends, if need be without another word:
    it hangs in a call that nothing interrupts. Of several, the one that started them sees to that.
    One that comes with the first is no second wish: a launcher that dies, or a terminal, may send several together.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self._taken = ExitStack()
        self._longest_step = 0.0
        self._reset()

    def _reset(self) -> None:
        self.requested, self._since = False, 0.0
        self._part = (time.monotonic(), GRACE_SECONDS, True)  # when it began, how long it may take, if it may be killed
        self._overdue = False
        self._over = threading.Event()

    def __enter__(self) -> Interruption:
        global _innermost
        self._reset()
        self._outer, _innermost = _innermost, self
        self._taken.enter_context(taken_by(self._handle))
        if threading.current_thread() is threading.main_thread():
            self._taken.enter_context(_numbers_to(self._insist))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        global _innermost
        _innermost = self._outer
        self._over.set()
        self._taken.close()
        if self.requested and not self.alone and isinstance(error, RuntimeError):
            raise KeyboardInterrupt from error  # another rank has ended first, and broken off the talk

    def begin(self, seconds: float | None = None) -> None:
        """Tell that the loop has come this far, and may take `seconds`, or the grace, until it looks again."""
        self._part = (time.monotonic(), GRACE_SECONDS if seconds is None else seconds, seconds is None)

    def begin_step(self) -> None:
        """Tell that an optimizer step begins, which may take twice as long as the longest of late."""
        self._part = (time.monotonic(), max(GRACE_SECONDS, 2 * self._longest_step), False)

    def end_step(self) -> None:
        """Tell that the step has ended."""
        self._longest_step = max(0.9 * self._longest_step, time.monotonic() - self._part[0])
        self.begin()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self._since, self.requested = now, True
        elif self._overdue or (number == signal.SIGINT and now - self._since > AT_ONCE_SECONDS):
            raise KeyboardInterrupt

    def _insist(self) -> None:
        """Interrupt the main thread once its time is up; end the process if that is of no use."""
        came = time.monotonic()
        while True:
            began, seconds, may_be_killed = self._part
            left = max(began, came) + seconds - time.monotonic()
            if left <= 0:
                break
            if self._over.wait(min(left, 0.1)):
                return
        self._overdue = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        if not self._over.wait(UNWINDING_SECONDS) and self.alone and may_be_killed:
            _end_now()


@contextmanager
def _numbers_to(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in a thread at the first of the signals, also while the main thread is in a call that knows none."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while (byte := os.read(reader, 1)) and byte[0] not in ENDING:
            pass  # another signal, as that of a child's end
        if byte:
            act()
        os.close(reader)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread


def is_asked() -> bool:
    """Whether a signal came to a run in this process that waits for nobody else: it may end where it stands."""
    return _innermost is not None and _innermost.alone and _innermost.requested


def _end_now() -> NoReturn:
    for process in multiprocessing.active_children():
        process.kill()
    print("Interrupted; what it was at did not end.", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


_innermost: Interruption | None = None

"""Handling SIGINT and SIGTERM, by which a user or a cluster asks a process to stop."""

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

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_INTERRUPTED = 130
DEBOUNCE_SECONDS = 0.5  # a launcher that dies, or a terminal, may send several signals at once: they count as one
GRACE_SECONDS = 5.0  # for the loop to poll the flag
UNWINDING_SECONDS = 3.0  # for an exception to leave the loop


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Install `handler` for SIGINT and SIGTERM in this context. No effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM too in this context; once for several signals that come together."""
    last = -math.inf

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > DEBOUNCE_SECONDS:
            raise KeyboardInterrupt

    with handle_stop_signals(interrupt):
        yield


class StopRequested(Exception):
    """A signal asks the run to stop, at a point where a checkpoint can be written."""


class GracefulStop:
    """Turn SIGINT/SIGTERM into a flag, `requested`, that the loop polls between its steps.

    A second SIGINT raises KeyboardInterrupt. So does the first signal if the loop does not poll before its deadline:
    `GRACE_SECONDS`, or what `extend_deadline` and `begin_step` set. If the exception does not get through either, as
    in a call that nothing interrupts, a `single_process` run is killed, except within a step or an extended deadline.
    Of several ranks the launcher kills the one that hangs.
    """

    def __init__(self, *, single_process: bool = True) -> None:
        self.single_process = single_process
        self._contexts = ExitStack()
        self._longest_step = 0.0
        self._reset()

    def _reset(self) -> None:
        self.requested, self._requested_at = False, 0.0
        self._deadline = (time.monotonic(), GRACE_SECONDS, True)  # from when, how long, and if to kill the process then
        self._overdue = False
        self._ended = threading.Event()

    def __enter__(self) -> GracefulStop:
        global _innermost
        self._reset()
        self._outer, _innermost = _innermost, self
        self._contexts.enter_context(handle_stop_signals(self._handle))
        if threading.current_thread() is threading.main_thread():
            self._contexts.enter_context(_call_on_signal(self._enforce_deadline))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        global _innermost
        _innermost = self._outer
        self._ended.set()
        self._contexts.close()
        if self.requested and not self.single_process and isinstance(error, RuntimeError):
            raise KeyboardInterrupt from error  # a collective failed because another rank stopped first

    def extend_deadline(self, seconds: float | None = None) -> None:
        """Expect the next poll within `seconds`, by default `GRACE_SECONDS`, from now."""
        self._deadline = (time.monotonic(), GRACE_SECONDS if seconds is None else seconds, seconds is None)

    def begin_step(self) -> None:
        """Expect the next poll within twice the time of the longest recent step."""
        self._deadline = (time.monotonic(), max(GRACE_SECONDS, 2 * self._longest_step), False)

    def end_step(self) -> None:
        """Note how long the step took."""
        self._longest_step = max(0.9 * self._longest_step, time.monotonic() - self._deadline[0])
        self.extend_deadline()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self._requested_at, self.requested = now, True
        elif self._overdue or (number == signal.SIGINT and now - self._requested_at > DEBOUNCE_SECONDS):
            raise KeyboardInterrupt

    def _enforce_deadline(self) -> None:
        """Interrupt the main thread at the deadline; kill the process if that has no effect."""
        signalled = time.monotonic()
        while True:
            begin, seconds, may_kill = self._deadline
            left = max(begin, signalled) + seconds - time.monotonic()
            if left <= 0:
                break
            if self._ended.wait(min(left, 0.1)):
                return
        self._overdue = True
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        if not self._ended.wait(UNWINDING_SECONDS) and self.single_process and may_kill:
            _kill_now()


@contextmanager
def _call_on_signal(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in a thread at the first stop signal, even if the main thread is in a call that blocks handlers."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait() -> None:
        while (byte := os.read(reader, 1)) and byte[0] not in STOP_SIGNALS:
            pass  # another signal, such as SIGCHLD
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


def stop_requested() -> bool:
    """Whether a single-process run was asked to stop: it need not wait for other ranks to agree."""
    return _innermost is not None and _innermost.single_process and _innermost.requested


def _kill_now() -> NoReturn:
    for process in multiprocessing.active_children():
        process.kill()
    print("Interrupted; what it was at did not end.", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)


_innermost: GracefulStop | None = None

"""Ctrl-C and SIGTERM as a wish that the training loop looks at, not as a blow."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

AT_ONCE_SECONDS = 0.5


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets `requested`; a later SIGINT interrupts at once.

    One that comes with the first is no second wish: a launcher that dies, or a terminal, may send several together.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere no handler can be set
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and number == signal.SIGINT and now - self._since > AT_ONCE_SECONDS:
            raise KeyboardInterrupt
        self._since = self._since if self.requested else now
        self.requested = True

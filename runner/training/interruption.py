"""Ctrl-C and SIGTERM as a wish that the training loop looks at, not as a blow."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from types import FrameType

from runner.signals import taken_by

AT_ONCE_SECONDS = 0.5


class Interruption:
    """A context in which the first SIGINT or SIGTERM sets `requested`; a later SIGINT interrupts at once.

    One that comes with the first is no second wish: a launcher that dies, or a terminal, may send several together.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._taken = ExitStack()

    def __enter__(self) -> Interruption:
        self._taken.enter_context(taken_by(self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._taken.close()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and number == signal.SIGINT and now - self._since > AT_ONCE_SECONDS:
            raise KeyboardInterrupt
        self._since = self._since if self.requested else now
        self.requested = True

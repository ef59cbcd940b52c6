"""Taking the signals by which a user or a cluster asks a process to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


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

"""GPUs that the jobs of a sweep share out among themselves, each in a process of its own.

A device has a place for each job that may use it at once. A place is a byte of a file, which a job's launcher locks;
the operating system frees it when that process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PAUSE_SECONDS = 0.2


@contextmanager
def take_devices(
    number: int, devices: Sequence[str], per_device: int, file: Path, should_stop: Callable[[], bool]
) -> Iterator[tuple[str, ...]]:
    """Wait for a place on each of `number` of the `devices`, and hold them; none if `should_stop` says so meanwhile.

    `file` is that of all processes that share the devices. They take their places one after the other, so that two
    that need several devices do not wait for each other, and one that does is not passed by for ever.
    """
    places = len(devices) * per_device
    held: dict[int, int] = {}  # place -> device
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        while not _is_locked_here(descriptor, places) and not should_stop():
            time.sleep(PAUSE_SECONDS)
        while len(held) < number and not should_stop():
            for place in range(places):  # an idle device before one that has a job
                device = place % len(devices)
                if len(held) < number and device not in held.values() and _is_locked_here(descriptor, place):
                    held[place] = device
            if len(held) < number:
                time.sleep(PAUSE_SECONDS)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, places)
        yield tuple(devices[device] for device in sorted(held.values())) if len(held) == number else ()
    finally:
        os.close(descriptor)


def _is_locked_here(descriptor: int, place: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except BlockingIOError:
        return False
    return True

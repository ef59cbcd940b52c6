"""The launcher's watch over the ranks that it started: it passes signals on, and kills all ranks if one hangs.

The launcher takes part in no collective, so a rank that hangs cannot block it; SIGKILL ends a stopped process too.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from runner.distributed.signals import DEBOUNCE_SECONDS, handle_stop_signals
from runner.results.run_lock import hold, is_held

FOLDER_PREFIX = "runner-"  # of the rendezvous folder
HEARTBEAT_SECONDS = 1.0
KILL_AFTER_SECONDS = 30.0  # from the first signal; ranks write their checkpoint meanwhile
STALE_SECONDS = 60.0  # an older folder without a held lock belongs to a launcher that was killed


class RankWatch:
    """Watch the ranks that this process started, by their heartbeats in `folder`, while in this context.

    The first SIGINT or SIGTERM is passed on to the ranks. They are killed at a second SIGINT, `KILL_AFTER_SECONDS`
    after the first signal, or if a rank has no heartbeat for `timeout` seconds; `hung` then names that rank.
    """

    def __init__(self, folder: Path, *, timeout: float) -> None:
        self.folder = folder
        self.timeout = timeout
        self.signalled_at: float | None = None
        self.hung: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._contexts = ExitStack()

    def __enter__(self) -> RankWatch:
        self._contexts.enter_context(handle_stop_signals(self._pass_on))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._contexts.close()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on as SIGTERM: a terminal sends Ctrl-C to the ranks too, and a second SIGINT kills them."""
        now = time.monotonic()
        if self.signalled_at is None:
            self.signalled_at = now
            _send(signal.SIGTERM)
        elif number == signal.SIGINT and now - self.signalled_at > DEBOUNCE_SECONDS:
            _send(signal.SIGKILL)

    def _watch(self) -> None:
        heartbeats: dict[Path, tuple[float, float]] = {}  # file -> (its time, when that was first read)
        while not self._ended.wait(HEARTBEAT_SECONDS / 2):
            now = time.monotonic()
            if self.signalled_at is not None and now - self.signalled_at > KILL_AFTER_SECONDS:
                _send(signal.SIGKILL)
            for file in self.folder.glob("beat-*"):
                with suppress(FileNotFoundError):
                    modified = file.stat().st_mtime
                    if heartbeats.get(file, (None, 0))[0] != modified:
                        heartbeats[file] = (modified, now)
            late = [file.name.partition("-")[2] for file, (_, read) in heartbeats.items() if now - read > self.timeout]
            if late and self.hung is None:
                self.hung = f"rank {' and '.join(sorted(late))} did not answer for {self.timeout:g} seconds"
                _send(signal.SIGKILL)


def start_heartbeat(folder: Path, rank: int) -> None:
    """Touch this rank's heartbeat file from a thread, until the process stops or ends."""
    file = folder / f"beat-{rank}"

    def touch() -> None:
        while True:
            with suppress(OSError):  # the launcher is gone, or the disk full: the rank is not watched
                file.touch()
            time.sleep(HEARTBEAT_SECONDS)

    threading.Thread(target=touch, name="heartbeat", daemon=True).start()


@contextmanager
def rendezvous_folder() -> Iterator[Path]:
    """A temporary folder for the launcher and its ranks. Removes those that killed launchers have left, too."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            is_stale = time.time() - status.st_mtime > STALE_SECONDS
            if is_stale and status.st_uid == os.getuid() and (folder / ".lock").is_file() and not is_held(folder):
                shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as name, hold(Path(name)):
        yield Path(name)


def _send(number: int) -> None:
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

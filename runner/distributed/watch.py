"""What the process that started the ranks of a run does while they are at work: pass signals on, notice one that hangs.

It never waits for a rank itself, so that it can end them whatever they do: SIGKILL ends a stopped process too.
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

from runner.distributed.signals import AT_ONCE_SECONDS, taken_by
from runner.results.run_lock import hold, is_held

PREFIX = "runner-"  # of the folder in which ranks and launcher tell each other of the run
BEAT_SECONDS = 1.0
KILL_AFTER_SECONDS = 30.0  # from the first signal; ranks write their checkpoint meanwhile
LEFT_BEHIND_SECONDS = 60.0  # a folder that was made so long ago has its lock, unless its process is dead


class RankWatch:
    """Watches the ranks that this process started, in this context; `folder` is where they beat.

    The first Ctrl-C or SIGTERM is passed on; a second Ctrl-C, or `KILL_AFTER_SECONDS` more, kills them. So does a rank
    that does not beat for `timeout` seconds: `hung` says which.
    """

    def __init__(self, folder: Path, *, timeout: float) -> None:
        self.folder = folder
        self.timeout = timeout
        self.asked: float | None = None  # when the first signal came
        self.hung: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._taken = ExitStack()

    def __enter__(self) -> RankWatch:
        self._taken.enter_context(taken_by(self._pass_on))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._taken.close()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """As SIGTERM, since a terminal's Ctrl-C goes to the ranks as well, and a second one would end them at once."""
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            _send(signal.SIGTERM)
        elif number == signal.SIGINT and now - self.asked > AT_ONCE_SECONDS:
            _send(signal.SIGKILL)

    def _watch(self) -> None:
        beats: dict[Path, tuple[float, float]] = {}  # of each rank the last beat, and when it was seen
        while not self._over.wait(BEAT_SECONDS / 2):
            now = time.monotonic()
            if self.asked is not None and now - self.asked > KILL_AFTER_SECONDS:
                _send(signal.SIGKILL)
            for file in self.folder.glob("beat-*"):
                with suppress(FileNotFoundError):
                    beat = file.stat().st_mtime
                    beats[file] = (beat, now) if beats.get(file, (None, 0))[0] != beat else beats[file]
            late = [file.name.partition("-")[2] for file, (_, seen) in beats.items() if now - seen > self.timeout]
            if late and self.hung is None:
                self.hung = f"rank {' and '.join(sorted(late))} did not answer for {self.timeout:g} seconds"
                _send(signal.SIGKILL)


def beat(folder: Path, rank: int) -> None:
    """Show, from a thread of its own, that this rank is not stopped."""
    file = folder / f"beat-{rank}"

    def go_on() -> None:
        while True:
            with suppress(OSError):  # the folder is gone with the launcher; on a full disk the rank is not watched
                file.touch()
            time.sleep(BEAT_SECONDS)

    threading.Thread(target=go_on, name="beat", daemon=True).start()


@contextmanager
def meeting_folder() -> Iterator[Path]:
    """A folder for launcher and ranks, which goes at the end; those of launchers that were killed go at its start."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            details = folder.lstat()
            old = time.time() - details.st_mtime > LEFT_BEHIND_SECONDS
            if old and details.st_uid == os.getuid() and (folder / ".lock").is_file() and not is_held(folder):
                shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name, hold(Path(name)):
        yield Path(name)


def _send(number: int) -> None:
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

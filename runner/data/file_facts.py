"""What was found out of files, kept in the user's cache folder, so that it is found out once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TypeVar

from runner.data.file_loader import UNREADABLE, available_workers
from runner.files.atomic import CannotWrite, write_atomically

T = TypeVar("T")
R = TypeVar("R")

TASK = 16  # items that a thread takes at a time
WORTH_KEEPING = 100  # files; for fewer, asking again is faster than it is noticed


class FileFacts:
    """Facts of one kind of the files below `root`; asked for anew where a file's size or one of its times changed.

    A cache that is damaged, or cannot be written, is done without.
    """

    def __init__(self, kind: str, root: str) -> None:
        digest = hashlib.blake2b(os.path.abspath(root).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        self.file = cache_folder() / f"{kind}-{digest}.json"
        self._facts = _read(self.file)
        self._num_new = 0

    def of(self, paths: Sequence[str], find_out: Callable[[str], object]) -> list:
        """For each path what `find_out(path)` returns, plain data, or the exception of `UNREADABLE` that it raised."""
        known = [self._known_fact(path) for path in paths]
        unknown = [path for path, fact in zip(paths, known, strict=True) if fact is None]
        found = dict(zip(unknown, in_threads(_or_error(find_out), unknown), strict=True))
        for path, fact in found.items():
            stamp = _stamp(path)
            if stamp is not None and not isinstance(fact, Exception):
                self._facts[os.path.abspath(path)] = [stamp, fact]
        self._num_new += len(found)
        if found and self._num_new >= WORTH_KEEPING:
            self._save()
        return [found[path] if fact is None else fact for path, fact in zip(paths, known, strict=True)]

    def _known_fact(self, path: str) -> object | None:
        stamp, fact = self._facts.get(os.path.abspath(path), (None, None))
        return fact if stamp is not None and stamp == _stamp(path) else None

    def _save(self) -> None:
        body = json.dumps({path: fact for path, fact in self._facts.items() if os.path.exists(path)})
        with contextlib.suppress(CannotWrite, OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, f"{_checksum(body)}\n{body}")


def in_threads(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`call` of each item, by threads: most of the time a file's reader waits for the disk, or needs no interpreter."""
    parts = [items[start : start + TASK] for start in range(0, len(items), TASK)]
    with ThreadPoolExecutor(available_workers()) as threads:
        return list(chain.from_iterable(threads.map(lambda part: [call(item) for item in part], parts)))


def cache_folder() -> Path:
    """Where the user's programs keep what they can do without; it may be removed at any time."""
    home = os.path.expanduser("~")
    if home == "~":  # a user without a home
        home = os.devnull
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "runner"


def _read(file: Path) -> dict[str, list]:
    try:
        checksum, body = file.read_text().split("\n", 1)
        return json.loads(body) if checksum == _checksum(body) else {}
    except (OSError, ValueError):
        return {}


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _or_error(find_out: Callable[[str], object]) -> Callable[[str], object]:
    def call(path: str) -> object:
        try:
            return find_out(path)
        except UNREADABLE as error:
            return error

    return call

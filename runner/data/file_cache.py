"""Results computed from files, cached in the user's cache folder."""

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

from runner.data.file_loader import READ_ERRORS, available_workers
from runner.files.atomic import CannotWrite, write_atomically

T = TypeVar("T")
R = TypeVar("R")

CHUNK_ITEMS = 16  # per task of a thread
MIN_NEW_RESULTS = 100  # to write the cache


class FileCache:
    """Results of one kind for the files below `root`, computed again if a file's size or times change.

    Ignores a cache file that is damaged or cannot be written.
    """

    def __init__(self, kind: str, root: str) -> None:
        digest = hashlib.blake2b(os.path.abspath(root).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        self.file = cache_folder() / f"{kind}-{digest}.json"
        self._results = _read(self.file)
        self._num_new = 0

    def get(self, paths: Sequence[str], compute: Callable[[str], object]) -> list:
        """`compute(path)`, which is plain data, of each path; or the exception of `READ_ERRORS` that it raises."""
        cached = [self._cached(path) for path in paths]
        missing = [path for path, result in zip(paths, cached, strict=True) if result is None]
        new = dict(zip(missing, in_threads(_or_error(compute), missing), strict=True))
        for path, result in new.items():
            stamp = _stamp(path)
            if stamp is not None and not isinstance(result, Exception):
                self._results[os.path.abspath(path)] = [stamp, result]
        self._num_new += len(new)
        if new and self._num_new >= MIN_NEW_RESULTS:
            self._save()
        return [new[path] if result is None else result for path, result in zip(paths, cached, strict=True)]

    def _cached(self, path: str) -> object | None:
        stamp, result = self._results.get(os.path.abspath(path), (None, None))
        return result if stamp is not None and stamp == _stamp(path) else None

    def _save(self) -> None:
        body = json.dumps({path: result for path, result in self._results.items() if os.path.exists(path)})
        with contextlib.suppress(CannotWrite, OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, f"{_checksum(body)}\n{body}")


def in_threads(call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`call` of each item, in threads: reading and decoding release the interpreter lock."""
    parts = [items[start : start + CHUNK_ITEMS] for start in range(0, len(items), CHUNK_ITEMS)]
    with ThreadPoolExecutor(available_workers()) as threads:
        return list(chain.from_iterable(threads.map(lambda part: [call(item) for item in part], parts)))


def cache_folder() -> Path:
    """The user's cache folder of this program, which may be removed at any time."""
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


def _or_error(compute: Callable[[str], object]) -> Callable[[str], object]:
    def call(path: str) -> object:
        try:
            return compute(path)
        except READ_ERRORS as error:
            return error

    return call

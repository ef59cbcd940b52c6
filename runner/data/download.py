"""Data sets of torchvision, whose files are downloaded where they are missing."""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from runner.config.text import first_line

T = TypeVar("T")
CONNECT_SECONDS = 20.0


def open_dataset(make: Callable[[], T], *, root: Path, name: str, download: bool, remedy: str) -> T:
    """What `make` returns, a data set of torchvision that reads or downloads its files below `root`.

    FileNotFoundError, which ends with `remedy`, where files are missing, damaged, or cannot be downloaded.
    """
    is_new = not root.exists()
    try:
        with _bounded_wait(), contextlib.redirect_stdout(io.StringIO()):
            return make()
    except (RuntimeError, OSError) as error:
        if is_new and root.is_dir() and not any(path.is_file() for path in root.rglob("*")):
            _remove_folders(root)  # torchvision makes them before the download
        reason = first_line(error).rstrip(".")
        raise FileNotFoundError(
            f"dataset.root={root}: {name} is not there, or not complete, and "
            f"{'could not be downloaded' if download else 'dataset.download is false'} ({reason}). {remedy}"
        ) from None


def _remove_folders(root: Path) -> None:
    for folder in sorted(root.rglob("*"), reverse=True):
        folder.rmdir()
    root.rmdir()


@contextlib.contextmanager
def _bounded_wait() -> Iterator[None]:
    """Time out if a host does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

"""Atomic writes that never follow symbolic links, and numbers for strict JSON."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp"  # the ending of files that are being written
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class CannotWrite(OSError):
    """A file cannot be written, for lack of room or rights; the message names the file and the reason."""

    @classmethod
    def from_os_error(cls, path: str | os.PathLike[str], error: OSError) -> CannotWrite:
        """The error for `path`, with the system's reason."""
        return error if isinstance(error, cls) else cls(f"{path} cannot be written ({error.strerror or error}).")


def is_disk_fault(error: OSError) -> bool:
    """Whether the disk is at fault (no room, no quota), so that another path would not help."""
    return isinstance(error, CannotWrite) or error.errno in NO_ROOM


def write_atomically(
    path: str | os.PathLike[str],
    content: str | Callable[[IO[bytes]], object],
    *,
    previous: Path | None = None,
) -> None:
    """Write `path` so that it has either its old content or all of the new content.

    `content` is text, or a function that writes to the binary file it is given. The content goes to a temporary file in
    the same folder, which is fsynced and renamed; a failure leaves nothing behind. If `previous` is given, the old file
    stays under this name: at any moment one of the two is complete. Raises CannotWrite.
    """
    try:
        _write_atomically(Path(path), content, previous)
    except OSError as error:
        raise CannotWrite.from_os_error(path, error) from error


def _write_atomically(path: Path, content: str | Callable[[IO[bytes]], object], previous: Path | None) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        with os.fdopen(open_unlinked(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode(errors="surrogateescape"))  # bytes of a path in a locale without UTF-8
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _keep(path: Path, previous: Path) -> None:
    """Give the file the name `previous` too, replacing the file of that name."""
    linked = previous.with_name(f".{previous.name}.{os.getpid()}{TEMPORARY}")
    linked.unlink(missing_ok=True)
    try:
        if previous.exists() and path.samefile(previous):
            return  # a process was killed before it renamed the next one; renaming a file to itself does nothing
        os.link(path, linked)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
    else:
        os.replace(linked, previous)
    finally:
        linked.unlink(missing_ok=True)


def open_unlinked(path: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file for writing. Raises OSError for a symbolic link, a FIFO or a device."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which nothing is written through") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there. Raises CannotWrite."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite.from_os_error(path, error) from None


def new_folder(parent: Path, name: str, take: Callable[[Path], object] = lambda path: None) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3`, ... where the name is taken: nothing is overwritten.

    `take` is called with it. Raises OSError if none can be made, and what `take` raises; the folder and the parents
    that were made for it are then taken away again.
    """
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        path = _numbered_folder(parent, name)
        made.insert(0, path)
        take(path)
    except OSError:
        with suppress(OSError):
            for folder in made:
                if folder.exists():
                    folder.rmdir()
        raise
    return path


def _numbered_folder(parent: Path, name: str) -> Path:
    path, number = parent / name, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = parent / f"{name}-{number}"
        else:
            return path


def remove_temporary(folder: Path) -> None:
    """Remove the files that a killed process left in a folder. No other process may be writing there."""
    for file in folder.glob(f".*{TEMPORARY}"):
        if file.is_symlink() or file.is_file():
            file.unlink(missing_ok=True)


def finite(value: object) -> object:
    """`value` with None for each NaN and infinity in it: strict JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value

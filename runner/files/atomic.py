"""Files that are written whole or not at all, never through a symbolic link; numbers as strict JSON takes them."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp"  # how the names end of files that are being written
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class CannotWrite(OSError):
    """There is no room for a file, or no right to write it. The message names it and says it all."""

    @classmethod
    def from_os_error(cls, path: str | os.PathLike[str], error: OSError) -> CannotWrite:
        """That `path` cannot be written, for the reason that the system gave."""
        return error if isinstance(error, cls) else cls(f"{path} cannot be written ({error.strerror or error}).")


def is_disk_fault(error: OSError) -> bool:
    """Whether the disk is at fault (no room, no quota), not the path, for which there may be a better one."""
    return isinstance(error, CannotWrite) or error.errno in NO_ROOM


def write_atomically(
    path: str | os.PathLike[str],
    content: str | Callable[[IO[bytes]], object],
    *,
    previous: Path | None = None,
) -> None:
    """Write `path` so that it holds either what it held before or all of the new content.

    `content` is the text, or a function that writes to the binary file it is given. It goes to a temporary file in
    the same folder, which is brought to the disk and then renamed; a failure leaves nothing of it behind. What `path`
    held before stays under the name `previous`, if that is given: at any moment one of the two is there and whole.
    Raises CannotWrite.
    """
    try:
        _write_atomically(Path(path), content, previous)
    except OSError as error:
        raise CannotWrite.from_os_error(path, error) from error


def _write_atomically(path: Path, content: str | Callable[[IO[bytes]], object], previous: Path | None) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)  # of a process that had this number and was killed
    try:
        with os.fdopen(open_unlinked(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode())
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
    """Give the file the name `previous` too, in the place of what has that name."""
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
    """A descriptor of a regular file to write to; OSError for a symbolic link in its place, a FIFO or a device."""
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


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name`, or `parent/name-2`, `-3`, ... where the name is taken: nothing is overwritten.

    Raises OSError if none can be made; the parents that were made for it are taken away again.
    """
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError:
            with suppress(OSError):
                for folder in missing:
                    if folder.exists():
                        folder.rmdir()
            raise
        else:
            return path


def remove_temporary(folder: Path) -> None:
    """Remove what `write_atomically` left in a folder when its process was killed. No other may be writing there."""
    for file in folder.glob(f".*{TEMPORARY}"):
        if file.is_symlink() or file.is_file():
            file.unlink(missing_ok=True)


def finite(value: object) -> object:
    """`value` with every NaN and infinity in it replaced by None: JSON has no word for them, strict readers fail."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value

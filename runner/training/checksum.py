"""A SHA-256 in a checkpoint's own file: torch.load checks no checksum, so that a changed byte would go unnoticed.

`torch.save` writes a zip file, whose last field is a comment. The digest of all that comes before the comment lies
there, so that the file stays one that every reader of zip files, and torch itself, can open.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import IO

MARK = b"sha256:"
_LENGTH = 2  # bytes of the field before the comment, which holds the comment's length
_COMMENT = len(MARK) + 64
_END_RECORD = 22  # bytes of a zip file's last record, where it has no comment
_CHUNK = 2**20


def seal(file: IO[bytes]) -> None:
    """Add the digest to a zip file without a comment, open for reading and writing; the position ends at its end."""
    size = file.seek(0, os.SEEK_END) - _LENGTH
    comment = MARK + _digest(file, size).encode()
    file.seek(size)
    file.write(len(comment).to_bytes(_LENGTH, "little") + comment)


def fault(path: Path) -> str | None:
    """What is wrong with a file that `seal` wrote, or None. A file without a digest is held to the zip file's CRC-32s.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - _COMMENT - _LENGTH
        file.seek(max(size, 0))
        end = file.read()
        if end.startswith(_COMMENT.to_bytes(_LENGTH, "little") + MARK):
            return None if _digest(file, size).encode() == end[_LENGTH + len(MARK) :] else "its checksum does not match"
        if end[-_END_RECORD:].startswith(b"PK\5\6") and end.endswith(bytes(_LENGTH)):
            return _crc_fault(file)
    return "it is cut off or damaged"


def _digest(file: IO[bytes], size: int) -> str:
    """The digest of the first `size` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _crc_fault(file: io.BufferedIOBase) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            return None if archive.testzip() is None else "its checksum does not match"
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OverflowError):
        return "it is cut off or damaged"

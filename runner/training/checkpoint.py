"""Checkpoint files: written atomically with a checksum, read with `weights_only=True`, two generations of the last."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import nn

from runner.files.atomic import CannotWrite, write_atomically
from runner.files.readers import is_there
from runner.files.tensors import read_tensors
from runner.methods.method import Method

PREVIOUS = "previous.pt"  # the generation before last.pt
CHECKSUM_PREFIX = b"sha256:"  # of the comment of a checkpoint's zip archive
_LENGTH_BYTES = 2  # of the field before the comment, its length
_COMMENT_BYTES = len(CHECKSUM_PREFIX) + 64
_END_RECORD_BYTES = 22  # of a zip archive's last record, without a comment
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Latest:
    """The newest usable checkpoint. `damaged`: what is wrong with a newer one, if there is one."""

    checkpoint: dict
    path: Path
    damaged: str | None = None


def save_checkpoint(path: Path, checkpoint: dict, *, previous: Path | None = None) -> None:
    """Write a checkpoint atomically, with a checksum. Keep the file that was there as `previous`, if given.

    Raises CannotWrite, and changes nothing, if the disk is full or does not permit it.
    """

    def write(file: IO[bytes]) -> None:
        torch.save(checkpoint, file)
        add_checksum(file)

    try:
        write_atomically(path, write, previous=previous)
    except RuntimeError as error:  # torch's own error, raised while it handles the OSError
        if not isinstance(error.__context__, OSError):
            raise
        raise CannotWrite.from_os_error(path, error.__context__) from error


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", *, check: Callable[[object], None] | None = None
) -> dict:
    """Read a checkpoint. Raises ValueError if it is missing, damaged, or fails `check` of checkpoint_content."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint.")
    try:
        fault = checksum_fault(path)
        if fault:
            raise ValueError(fault)
        content = read_tensors(path, device)
        if check is not None:
            check(content)
        return content
    except OSError as error:
        raise ValueError(f"{path}: this checkpoint cannot be read; {error.strerror or error}.") from None
    except ValueError as error:
        raise ValueError(f"{path}: this checkpoint cannot be used; {str(error).removesuffix('.')}.") from None


def load_latest(
    last: Path, device: torch.device | str = "cpu", *, check: Callable[[object], None] | None = None
) -> Latest | None:
    """Read `last`, or the generation before it if that is damaged. None if there is neither.

    Raises ValueError if all that are there are damaged.
    """
    faults = []
    for path in (last, last.with_name(PREVIOUS)):
        if not is_there(path):
            continue
        try:
            return Latest(load_checkpoint(path, device, check=check), path, faults[0] if faults else None)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(" ".join(faults))
    return None


def restore_model(checkpoint: Mapping, model: nn.Module, methods: Mapping[str, Method]) -> None:
    """Load the state of a model and of its methods, which may change how it is evaluated."""
    model.load_state_dict(checkpoint["model"])
    for name, method in methods.items():
        method.load_state_dict(checkpoint["methods"].get(name, {}))


def random_state(device: torch.device) -> dict:
    """The state of torch's global generators."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict, device: torch.device) -> None:
    """Restore the result of `random_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def add_checksum(file: IO[bytes]) -> None:
    """Append a SHA-256 to a file of `torch.save`, as the comment of its zip archive, which torch ignores.

    `torch.load` checks no checksum: a changed byte would go unnoticed. The digest covers all bytes before the comment.
    """
    size = file.seek(0, os.SEEK_END) - _LENGTH_BYTES
    comment = CHECKSUM_PREFIX + _digest(file, size).encode()
    file.seek(size)
    file.write(len(comment).to_bytes(_LENGTH_BYTES, "little") + comment)


def checksum_fault(path: Path) -> str | None:
    """How a file fails its SHA-256, or the CRC-32s of its zip archive if it has none; None if it does not.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - _COMMENT_BYTES - _LENGTH_BYTES
        file.seek(max(size, 0))
        end = file.read()
        if end.startswith(_COMMENT_BYTES.to_bytes(_LENGTH_BYTES, "little") + CHECKSUM_PREFIX):
            digest = end[_LENGTH_BYTES + len(CHECKSUM_PREFIX) :]
            return None if _digest(file, size).encode() == digest else "its checksum does not match"
        if end[-_END_RECORD_BYTES:].startswith(b"PK\5\6") and end.endswith(bytes(_LENGTH_BYTES)):
            return _crc_fault(file)
    return "it is cut off or damaged"


def _digest(file: IO[bytes], size: int) -> str:
    """The digest of the first `size` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(CHUNK_BYTES, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _crc_fault(file: io.BufferedIOBase) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            return None if archive.testzip() is None else "its checksum does not match"
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OverflowError):
        return "it is cut off or damaged"

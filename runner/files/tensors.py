"""Files that `torch.save` wrote, read without executing code in them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch

# what torch.load raises over files that are none of its own, or have bytes changed or missing
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, LookupError)
UNREADABLE += (ValueError, TypeError, AttributeError, AssertionError)


def read_tensors(path: Path, device: torch.device | str = "cpu", *, mapped: bool = False) -> object:
    """The content of a file, with tensors on `device`; read with `weights_only=True`.

    `mapped` leaves tensors on the disk until they are used. Raises ValueError, with a short reason, if the file cannot
    be read, is damaged or has more than tensors and plain values.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_bomb(path)
        # files from before torch 1.6 are no zip files and cannot be mapped into memory
        return torch.load(path, map_location=device, weights_only=True, mmap=mapped and is_zip)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    except UNREADABLE:  # whose messages propose to run what lies in the file
        raise ValueError("it is damaged, or holds more than tensors") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of safetensors. Raises ValueError as `read_tensors`, and without that package."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("it needs the package safetensors, which timm brings: pip install '.[timm]'") from None
    try:
        return load_file(path)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    except SafetensorError:
        raise ValueError("it is damaged") from None


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError if the parts of a zip file are larger than the file: torch does not compress."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError

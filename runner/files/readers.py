"""Readers of the files of runs and sweeps, which may be damaged or forged.

They read regular files of bounded size only: opening a FIFO can block for ever, and a device may have no end. They
raise Unreadable, a ValueError with the path and the reason.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import yaml

PNG_SIGNATURE, PNG_HEADER_BYTES = b"\x89PNG\r\n\x1a\n", 24  # up to the width and height
LARGEST_TEXT = 2**26  # bytes of a JSON or YAML file
LARGEST_LOG = 2**30  # bytes of a metrics.jsonl
LARGEST_ARRAYS = 2**30  # bytes of the arrays in an .npz file
MOST_NODES, DEEPEST = 10**6, 64  # of a tree of values: a few lines of YAML can expand to more, or to a cycle


class Unreadable(ValueError):
    """A file cannot be read or has the wrong content. The message is its path and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def is_there(path: Path) -> bool:
    """Whether the path exists, if only as a broken link."""
    return os.path.lexists(path)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading. Raises Unreadable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening a FIFO waits for a writer
    except OSError as error:
        raise Unreadable(path, f"it cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a name that no file can have
        raise Unreadable(path, f"it cannot be read ({error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(path, "this is no regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], *, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file. Raises Unreadable, also for more than `largest` bytes."""
    with open_regular(path) as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise Unreadable(path, f"it cannot be read ({error.strerror or error})") from None
    if len(content) > largest:
        raise Unreadable(path, f"it is larger than {largest // 2**20} MiB")
    return content


def read_png(path: str | os.PathLike[str]) -> bytes:
    """The content of a PNG file. Raises Unreadable, also for a file that does not begin as one."""
    content = read_bytes(path)
    if not content.startswith(PNG_SIGNATURE) or len(content) < PNG_HEADER_BYTES:
        raise Unreadable(path, "it is no PNG file")
    return content


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file in UTF-8. Raises Unreadable."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise Unreadable(path, "not text in UTF-8") from None


def parse_json(text: str | bytes, path: str | os.PathLike[str]) -> object:
    """The value of the JSON in `text`, from the file `path`. Raises Unreadable."""
    try:
        return checked_tree(json.loads(text), path)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        raise Unreadable(path, f"not JSON ({reason})") from None


def read_json_object(path: str | os.PathLike[str]) -> dict:
    """The object in a JSON file. Raises Unreadable."""
    value = parse_json(read_bytes(path), path)
    if not isinstance(value, dict):
        raise Unreadable(path, "not a JSON object")
    return value


def read_yaml(path: str | os.PathLike[str]) -> object:
    """The value in a YAML file, plain values only. Raises Unreadable."""
    try:
        value = yaml.load(read_text(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise Unreadable(path, f"not YAML ({reason})") from None
    except ValueError as error:  # a date that is none
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(path, f"not YAML ({error})") from None
    return checked_tree(value, path)


def read_yaml_mapping(path: str | os.PathLike[str]) -> dict:
    """The mapping in a YAML file, with text as keys. Raises Unreadable."""
    value = read_yaml(path)
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise Unreadable(path, "not a mapping of names")
    return value


def read_arrays(path: str | os.PathLike[str]) -> dict:
    """The arrays in an .npz file by name. Raises Unreadable."""
    import numpy as np

    arrays = {}
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > LARGEST_ARRAYS:
                    raise Unreadable(path, f"it holds more than {LARGEST_ARRAYS // 2**20} MiB")
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        _check_header(member, entry.file_size)
                    with archive.open(entry) as member:
                        array = np.lib.format.read_array(member, allow_pickle=False)
                    arrays[entry.filename.removesuffix(".npy")] = array
        except Unreadable:
            raise
        except (OSError, ValueError, EOFError, LookupError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
            raise Unreadable(path, "it is damaged, or no .npz file") from None
    return arrays


def _check_header(member: IO[bytes], size: int) -> None:
    """Raise ValueError if the header claims more bytes than the file has, before memory is allocated for them."""
    import numpy as np

    version = np.lib.format.read_magic(member)
    shape, _, kind = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )(member)
    if any(length < 0 for length in shape) or math.prod(shape) * kind.itemsize > size:
        raise ValueError


def checked_tree(value: object, path: str | os.PathLike[str]) -> object:
    """`value` if it is a tree of bounded size and depth. Raises Unreadable."""
    nodes, level = 0, [value]
    for _ in range(DEEPEST):
        nodes += len(level)
        if nodes > MOST_NODES:
            raise Unreadable(path, "it holds too many values")
        level = [child for node in level if isinstance(node, (dict, list, tuple, set)) for child in _children(node)]
        if not level:
            return value
    raise Unreadable(path, "its values are nested too deeply")


def _children(node: object) -> list:
    return [*node, *node.values()] if isinstance(node, Mapping) else list(node)

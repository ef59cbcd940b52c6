"""A run's folder: where each file lies, and how it is written so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import yaml

from runner.config import SettingError


class RunFolder:
    """The files of one run, as DESIGN and README list them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.overrides = path / "overrides.yaml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.error = path / "error.txt"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, parent: Path, name: str) -> RunFolder:
        """Make `parent/name`, or `parent/name-2`, `-3`, ... where the name is taken: nothing is overwritten."""
        number = 1
        while True:
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                number += 1
                continue
            folder = cls(path)
            folder.checkpoints.mkdir()
            return folder

    def checkpoint(self, name: str) -> Path:
        """The path of the checkpoint `last` or `best`."""
        return self.checkpoints / f"{name}.pt"

    def write_settings(self, config: dict, overrides: Sequence[str]) -> None:
        """The resolved configuration, and the overrides that a resumed run starts from."""
        write_atomically(self.config, lambda file: file.write(yaml.safe_dump(config, sort_keys=False).encode()))
        write_atomically(self.overrides, lambda file: file.write(yaml.safe_dump(list(overrides)).encode()))

    def write_summary(self, summary: dict) -> None:
        """`summary.json`; a number that is not finite is written as null, which every reader knows."""
        text = json.dumps(_finite(summary), indent=2, allow_nan=False)
        write_atomically(self.summary, lambda file: file.write(f"{text}\n".encode()))

    def read_summary(self) -> dict:
        """What `summary.json` says; empty where there is none."""
        return json.loads(self.summary.read_text()) if self.summary.is_file() else {}


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, bring it to the disk and rename it: `path` is old or new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def earlier_overrides(arguments: Sequence[str]) -> list[str]:
    """The command line's arguments, with those of the folder that `resume=` names put before them.

    An earlier override gives way to a new one of the same key.
    """
    resume = [word.removeprefix("resume=") for word in arguments if word.startswith("resume=")]
    if not resume or resume[-1] in ("", "null"):
        return list(arguments)
    folder = RunFolder(Path(resume[-1]))
    if not folder.overrides.is_file():
        raise SettingError(f"resume={resume[-1]}: no run lies there ({folder.overrides.name} is missing).")
    if any(word in ("-m", "--multirun") for word in arguments):
        raise SettingError(f"resume={resume[-1]}: one run goes on, not a sweep; leave out -m.")
    new = {_key(word) for word in arguments}
    earlier = [word for word in yaml.safe_load(folder.overrides.read_text()) if _key(word) not in new]
    return [*earlier, *arguments]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value

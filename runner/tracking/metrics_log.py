"""metrics.jsonl: the truth of a run, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

SPLITS = ("train", "validation", "test", "steps")


class MetricsLog:
    """Rows of metrics, appended to `path`; each row is on the disk's side of Python's buffers when `write` returns.

    A row is `{"step": int, "epoch": int or float, "split": one of SPLITS, <metric>: value, ...}`: `step` counts the
    optimizer steps done, `split="steps"` is for what is measured within an epoch. Floats keep their full precision.
    A NaN or an infinity is written as `null`, because JSON has no word for them and strict readers fail on `NaN`.

    A process that dies while it writes leaves a line without its end; such a line is dropped by `read`, and removed
    from the file by the next MetricsLog that opens it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists():
            lines, torn = _lines(self.path)
            if torn:
                write_atomically(self.path, "".join(lines))

    def write(self, row: Mapping[str, object]) -> None:
        """Append one row."""
        assert {"step", "epoch", "split"} <= row.keys(), f"not a row of metrics: {row}"
        assert row["split"] in SPLITS, f"unknown split: {row}"
        line = json.dumps(_finite(row), allow_nan=False) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line)

    def cut_back(self, step: int) -> None:
        """Remove every row after `step`, the one of the checkpoint from which the run goes on; atomic."""
        if self.path.exists():
            lines, _ = _lines(self.path)
            write_atomically(self.path, "".join(line for line in lines if json.loads(line)["step"] <= step))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> list[dict]:
        """The rows of a metrics file, without a torn last line. Raises ValueError at any other line that is no JSON."""
        rows = []
        for number, line in enumerate(_lines(Path(path))[0], start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not a JSON object ({error}); the file was changed") from error
        return rows


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` so that `path` holds either its old content or all of the new: temporary file, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lines(path: Path) -> tuple[list[str], bool]:
    """The complete lines of a file, each with its line end, and whether a last one without an end was left out.

    The bytes are decoded line by line, since a torn line may end within a character.
    """
    *complete, last = path.read_bytes().split(b"\n")
    return [line.decode() + "\n" for line in complete if line.strip()], bool(last)


def _finite(value: object) -> object:
    """`value` with each NaN or infinity in it replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value

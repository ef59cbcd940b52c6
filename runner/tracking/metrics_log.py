"""metrics.jsonl: the truth of a run, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from runner.files import CannotWrite, finite, write_atomically

SPLITS = ("train", "validation", "test", "steps", "probe")


class MetricsLog:
    """Rows of metrics, appended to `path`; each row is on the disk's side of Python's buffers when `write` returns.

    A row is `{"step": int, "epoch": int or float, "split": one of SPLITS, <metric>: value, ...}`: `step` counts the
    optimizer steps done, `split="steps"` is for what is measured within an epoch, "probe" for what probes found. Floats
    keep their full precision. A NaN or an infinity is written as `null`, because JSON has no word for them and strict
    readers fail on `NaN`.

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
        """Append one row. Raises CannotWrite; the part of a row that is then there counts for nothing."""
        assert {"step", "epoch", "split"} <= row.keys(), f"not a row of metrics: {row}"
        assert row["split"] in SPLITS, f"unknown split: {row}"
        line = json.dumps(finite(row), allow_nan=False) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise CannotWrite.told(self.path, error) from error

    def cut_back(self, step: int) -> None:
        """Remove every row after `step`, the one of the checkpoint from which the run goes on; atomic.

        The test split is evaluated after the last checkpoint, so its row goes too.
        """
        if self.path.exists():
            lines, _ = _lines(self.path)
            rows = [(line, json.loads(line)) for line in lines]
            kept = [line for line, row in rows if row["step"] <= step and row["split"] != "test"]
            write_atomically(self.path, "".join(kept))

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


def _lines(path: Path) -> tuple[list[str], bool]:
    """The complete lines of a file, each with its line end, and whether a last one without an end was left out.

    The bytes are decoded line by line, since a torn line may end within a character.
    """
    *complete, last = path.read_bytes().split(b"\n")
    return [line.decode() + "\n" for line in complete if line.strip()], bool(last)

"""The writer of metrics.jsonl, the file that W&B mirrors and reports read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from runner.files.atomic import CannotWrite, finite, open_unlinked, write_atomically
from runner.files.readers import LARGEST_LOG, is_there, read_bytes
from runner.results.metrics import SPLITS, read_lines, read_rows


class MetricsLog:
    """Appends rows of metrics to `path`, each flushed before `write` returns.

    A row is `{"step": int, "epoch": int or float, "split": one of SPLITS, <metric>: value, ...}`. `step` counts the
    optimizer steps done; the split "steps" has measurements within an epoch, "probe" those of probes. Floats keep full
    precision; NaN and infinities become `null`, since JSON has neither.

    A process that is killed while it writes leaves an unfinished line. `read_rows` drops it, and the next MetricsLog
    that opens the file removes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.rows = 0  # in the file
        if is_there(self.path):
            *whole, torn = content = read_bytes(self.path, largest=LARGEST_LOG).split(b"\n")
            self.rows = sum(bool(line.strip()) for line in whole)
            if torn:
                write_atomically(self.path, lambda file: file.write(b"\n".join([*content[:-1], b""])))

    def write(self, row: Mapping[str, object]) -> None:
        """Append a row. Raises CannotWrite; readers drop a partly written row."""
        assert {"step", "epoch", "split"} <= row.keys(), f"not a row of metrics: {row}"
        assert row["split"] in SPLITS, f"unknown split: {row}"
        line = json.dumps(finite(row), allow_nan=False) + "\n"
        try:
            with os.fdopen(open_unlinked(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise CannotWrite.from_os_error(self.path, error) from error
        self.rows += 1

    def cut_back(self, step: int) -> None:
        """Remove the rows after `step`, that of the checkpoint from which the run resumes; atomic.

        The row of the test split, which is evaluated after the last checkpoint, is removed too. A negative step removes
        all rows, readable or not. Raises Unreadable as `read_rows`.
        """
        if is_there(self.path):
            kept = [f"{line}\n" for line, row in read_lines(self.path) if _is_before(row, step)] if step >= 0 else []
            write_atomically(self.path, "".join(kept))
            self.rows = len(kept)

    @staticmethod
    def count(path: str | os.PathLike[str], step: int) -> int:
        """The number of rows that `cut_back` would keep. Raises Unreadable as `read_rows`."""
        return sum(_is_before(row, step) for row in read_rows(path)) if is_there(Path(path)) else 0


def _is_before(row: Mapping, step: int) -> bool:
    """Whether a row was written before the checkpoint of this step."""
    return row["step"] <= step and row["split"] != "test"

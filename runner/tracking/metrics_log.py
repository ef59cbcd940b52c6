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
    """Rows of metrics, appended to `path`; each row is on the disk's side of Python's buffers when `write` returns.

    A row is `{"step": int, "epoch": int or float, "split": one of SPLITS, <metric>: value, ...}`: `step` counts the
    optimizer steps done, `split="steps"` is for what is measured within an epoch, "probe" for what probes found. Floats
    keep their full precision. A NaN or an infinity is written as `null`, because JSON has no word for them and strict
    readers fail on `NaN`.

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
        """Append one row. Raises CannotWrite; the part of a row that is then there counts for nothing."""
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
        """Remove every row after `step`, the one of the checkpoint from which the run goes on; atomic.

        The test split is evaluated after the last checkpoint, so its row goes too. Below 0 all rows go, readable or
        not. Raises Unreadable as `read_rows`.
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
    """Whether a row was there at the checkpoint of this step: the test split is evaluated after the last one."""
    return row["step"] <= step and row["split"] != "test"

"""The metrics of a run: their names, `<split>/<metric>`, and the readers of metrics.jsonl and summary.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from runner.files.readers import LARGEST_LOG, Unreadable, parse_json, read_bytes, read_json_object

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
SPLITS = ("train", "validation", "test", "steps", "probe")
SCORES = {"accuracy": "accuracy", "mean_iou": "mean IoU"}  # the metric that chooses best.pt, by task, and its title
SECTIONS = {"test": "metrics", "last": "last", "validation": "best"}  # where summary.json has the metrics of a split


def score_of(*metrics: Mapping[str, object]) -> str | None:
    """The score that one of the given metrics has: "accuracy", "mean_iou", or None."""
    return next((name for name in SCORES if any(name in each for each in metrics)), None)


def metric_names(row: Mapping[str, object]) -> dict[str, str]:
    """The name `<split>/<metric>` of each metric of a row, by its key."""
    return {key: f"{row['split']}/{key}" for key in row if key not in ("step", "epoch", "split")}


def read_rows(path: str | os.PathLike[str]) -> list[dict]:
    """The rows of a metrics.jsonl, or of the one in a run's folder; a line that a killed process left unfinished is
    dropped.

    Raises Unreadable, with the line's number, for any other line that is not a row, and if there is no file.
    """
    path = Path(path)
    return [row for _, row in read_lines(path / METRICS if path.is_dir() else path)]


def read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The text of each complete line with its row. Raises Unreadable as `read_rows`."""
    for number, line in enumerate(read_bytes(path, largest=LARGEST_LOG).split(b"\n")[:-1], 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise Unreadable(where, "not text in UTF-8") from None
            row = parse_json(text, where)
            if not isinstance(row, dict):
                raise Unreadable(where, "not a JSON object")
            if not _is_row(row):
                raise Unreadable(where, 'no row of metrics: "step", "epoch" and "split" are wrong')
            yield text, row


def last_step(folder: Path) -> int:
    """The step of the last row in a run's folder, 0 without one; a file that is being written may be damaged."""
    try:
        lines = read_bytes(folder / METRICS, largest=LARGEST_LOG).splitlines()
    except Unreadable:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return 0


def read_summary(folder: Path) -> dict:
    """The content of summary.json in a run's folder, empty without one that can be read."""
    try:
        return read_json_object(folder / SUMMARY)
    except Unreadable:
        return {}


def section(summary: Mapping, *names: str) -> dict:
    """The mapping under these nested names of a summary, empty without one."""
    for name in names:
        summary = summary.get(name)
        if not isinstance(summary, dict):
            return {}
    return summary


def summary_number(summary: Mapping, name: str) -> float | None:
    """The number of a summary called `test/accuracy`, `validation/loss`, `model/num_params`, ...; None without one."""
    family, _, key = name.partition("/")
    value = section(summary, SECTIONS.get(family, family)).get(key)
    return value if _is_number(value) and not math.isnan(value) else None


def _is_row(row: dict) -> bool:
    numbers = [row.get("step"), row.get("epoch")]
    return all(_is_number(n) and math.isfinite(n) for n in numbers) and row.get("split") in SPLITS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

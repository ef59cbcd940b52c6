"""Learning curves from a run's metrics.jsonl."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from typing import Any

import numpy as np

from runner.results.measurement import Measurement
from runner.results.metrics import read_rows, score_of


def learning_curves(path: str | os.PathLike[str]) -> Measurement:
    """The metrics of a run by split: train and validation (a row for each epoch), test, and steps (within an epoch).

    `path` is a metrics.jsonl or a run's folder. A null, which stands for a value that was not finite, is NaN; so is a
    metric that a row lacks.

    Arrays: `<split>/<name>`, float64, a value for each row, for `step`, `epoch` and each metric that is a number.
    Numbers: `best_score` on the validation split and its `best_epoch` (the first of equals), `epochs` (rows of the
    train split), and, from the last rows, `train_loss`, `validation_loss` and `generalization_gap` (train minus
    validation score); NaN if the run ended too early. Scores are shares of 1.
    Texts: `score`, "accuracy" or "mean_iou"; "" for neither.

    Raises Unreadable, a ValueError, for a line that is not a row of metrics, and if there is no file.
    """
    rows = read_rows(path)
    by_split: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_split[row["split"]].append(row)
    arrays = {f"{split}/{name}": column for split, of_split in by_split.items() for name, column in _columns(of_split)}
    score = score_of(*rows) or ""
    numbers = {
        **_best(arrays.get(f"validation/{score}"), arrays.get("validation/epoch")),
        "epochs": float(len(by_split["train"])),
        "train_loss": _last(arrays, "train/loss"),
        "validation_loss": _last(arrays, "validation/loss"),
        "generalization_gap": _last(arrays, f"train/{score}") - _last(arrays, f"validation/{score}"),
    }
    return Measurement(arrays, numbers, {"score": score})


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, np.ndarray]]:
    names = {name: None for row in rows for name, value in row.items() if _is_number(value) or value is None}
    return [
        (name, np.array([row[name] if _is_number(row.get(name)) else np.nan for row in rows], dtype=float))
        for name in names
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _best(scores: np.ndarray | None, epochs: np.ndarray | None) -> dict[str, float]:
    if scores is None or epochs is None or np.isnan(scores).all():
        return {"best_score": math.nan, "best_epoch": math.nan}
    best = np.nanargmax(scores)
    return {"best_score": float(scores[best]), "best_epoch": float(epochs[best])}


def _last(arrays: dict[str, np.ndarray], name: str) -> float:
    return float(arrays[name][-1]) if name in arrays else math.nan

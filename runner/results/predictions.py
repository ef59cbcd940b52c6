"""predictions.npz of a run: what its model said of each test image, for statistics over images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.files.atomic import write_atomically
from runner.files.readers import Unreadable, read_arrays
from runner.results.run_folder import PREDICTIONS
from runner.results.runs import Run

SPLITS = ("test", "last")  # of best.pt and of the last weights, both on the test split


@dataclass(frozen=True, eq=False)
class ImageValues:
    """A measure of each test image (M,), whose mean over images is the run's; `targets` tell the images apart."""

    values: np.ndarray
    targets: np.ndarray


def write_predictions(path: Path, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the arrays of each split under "test/NAME" and "last/NAME".

    Of M images and C classes: in classification target (M,), class (M,), margin (M,), the logit of the target less the
    largest other, and loss (M,); in segmentation the numbers of pixels (M, C) that have the class by the mask (target),
    by the model (predicted) and by both, and loss (M,).
    """
    arrays = {f"{split}/{name}": array for split, found in outputs.items() for name, array in found.items()}
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def images_of(run: Run, name: str) -> ImageValues | None:
    """The measure of each test image; None if it is not a mean over test images, or the run has no such file.

    The mean IoU J is no mean over images. Its values are those of the jackknife, M J - (M - 1) J_{-i} with J_{-i} that
    of all images but i: their mean is J but for a bias of order 1/M, and they vary as J does with the images.
    """
    split, _, metric = name.partition("/")
    if split not in SPLITS or "@" in name:
        return None
    try:
        arrays = read_arrays(run.folder / PREDICTIONS)
        found = {key.removeprefix(f"{split}/"): array for key, array in arrays.items() if key.startswith(f"{split}/")}
        values, targets = _values(run.score if metric == "score" else metric, found), found["target"]
    except (Unreadable, LookupError):
        return None
    return None if values is None else ImageValues(values, targets)


def num_images(run: Run, name: str) -> int:
    """The number of images of which the measure is the share that is classified right; 0 for another measure."""
    split, _, metric = name.partition("/")
    metric = run.score if metric == "score" else metric
    if metric != "accuracy" or split not in (*SPLITS, "validation"):
        return 0
    number = run.section("data").get("validation" if split == "validation" else "test")
    return number if isinstance(number, int) else 0


def _values(metric: str, found: Mapping[str, np.ndarray]) -> np.ndarray | None:
    if metric == "loss":
        return found["loss"].astype(np.float64)
    if metric == "accuracy":
        return (found["class"] == found["target"]).astype(np.float64)
    if metric == "mean_iou":
        return _jackknife(found["both"], found["target"], found["predicted"])
    return None


def _jackknife(both: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    intersection = both.astype(np.float64)
    union = labelled.astype(np.float64) + predicted - intersection

    def mean_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
        iou = np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)
        return np.nanmean(iou, axis=-1)

    number = len(intersection)
    whole = mean_iou(intersection.sum(0), union.sum(0))
    without = mean_iou(intersection.sum(0) - intersection, union.sum(0) - union)
    return number * whole - (number - 1) * without

"""Figures of a sweep's learning curves and probes, the arms over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from runner.figures import NAMES, draw
from runner.files.readers import Unreadable, read_png
from runner.results.arms import Arm
from runner.results.learning_curves import learning_curves
from runner.results.measurement import Measurement
from runner.results.measures import measured_probes
from runner.results.run_folder import probe_files
from runner.results.runs import Run

MOST_ARMS_WITH_TRAINING = 3  # with more, the curves of both splits cannot be told apart


def curves_figure(arms: Sequence[Arm]) -> Figure | None:
    """Loss and score by epoch, an arm a line and its seeds a band; None if no run has finished two epochs.

    With more than three arms, only the validation split is drawn.
    """
    splits = ("train", "validation") if len(arms) <= MOST_ARMS_WITH_TRAINING else ("validation",)
    with_seeds = [(arm.label, [curve for run in arm.runs if (curve := _curve(run, splits))]) for arm in arms]
    drawn = [(label, curves) for label, curves in with_seeds if curves]
    columns = [column for _, curves in drawn for curve in curves for column in curve.arrays.values()]
    return draw("learning_curves", drawn) if max(map(len, columns), default=0) > 1 else None


def _curve(run: Run, splits: Sequence[str]) -> Measurement | None:
    """The run's learning curves on these splits; None without rows that can be read."""
    try:
        curves = learning_curves(run.folder)
    except (OSError, ValueError):
        return None
    arrays = {name: values for name, values in curves.arrays.items() if name.partition("/")[0] in splits}
    return Measurement(arrays, curves.numbers, curves.texts) if arrays else None


def probe_names(arms: Sequence[Arm]) -> list[str]:
    """The probes of which a run has a measurement, in alphabetical order."""
    measured = measured_probes(run for arm in arms for run in arm.runs)
    return sorted(measured - {"learning_curves"})  # drawn by `curves_figure`


def probe_figure(name: str, arms: Sequence[Arm]) -> tuple[Figure | None, list[str]]:
    """The arms' last measurements of the probe `name` over one another, and a sentence for each file that cannot be
    drawn. None without any, and for a probe from outside, whose code a report does not run.
    """
    if name not in NAMES:
        return None, []
    measurements = {run.folder: _last(run.folder, name) for arm in arms for run in arm.runs}
    try:
        return _drawn(name, arms, measurements), []
    except Exception:  # some file does not have what the probe measures; find out which
        odd = [folder for folder, measured in measurements.items() if measured and not _is_drawable(name, measured)]
        if not odd:
            raise
    notes = [f"{folder}: what its probe {name} left cannot be drawn." for folder in odd]
    return _drawn(name, arms, measurements | dict.fromkeys(odd)), notes


def _drawn(name: str, arms: Sequence[Arm], measurements: Mapping[Path, Measurement | None]) -> Figure | None:
    with_seeds = [(arm.label, [seed for run in arm.runs if (seed := measurements[run.folder])]) for arm in arms]
    labelled = [(label, seeds) for label, seeds in with_seeds if seeds]
    if not labelled:
        return None
    try:
        return draw(name, labelled)
    except ValueError:  # the seeds of an arm were measured at different layers
        return draw(name, [(f"{label} (first seed)", seeds[:1]) for label, seeds in labelled])


def _is_drawable(name: str, measurement: Measurement) -> bool:
    try:
        draw(name, measurement)
    except Exception:  # a forged file may lack anything; `probe_figure` reports it
        return False
    return True


def unreadable_probes(folder: Path) -> list[str]:
    """A sentence for each probe file of the run that cannot be read."""
    readers = [(file.path, Measurement.load) for file in probe_files(folder, "npz")]
    readers += [(file.path, read_png) for file in probe_files(folder, "png")]
    notes = []
    for path, read in readers:
        try:
            read(path)
        except Unreadable as error:
            notes.append(str(error))
    return notes


def own_pictures(name: str, arm: Arm) -> list[Path]:
    """The pictures of the probe `name` from the first run of the arm that has any, by step."""
    for run in arm.runs:
        pictures = [file.path for file in probe_files(run.folder, "png") if file.probe == name]
        if pictures:
            return pictures
    return []


def _last(folder: Path, name: str) -> Measurement | None:
    files = [file.path for file in probe_files(folder, "npz") if file.probe == name]
    try:
        return Measurement.load(files[-1]) if files else None
    except Unreadable:
        return None

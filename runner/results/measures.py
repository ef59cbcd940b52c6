"""What a study measures: the number of a run under a name such as `test/accuracy`, and how a table calls it."""

from __future__ import annotations

import math
import re
from pathlib import Path

from runner.config.limits import did_you_mean
from runner.config.options import CONF
from runner.config.text import canonical
from runner.files.readers import Unreadable, read_arrays
from runner.results.probe_files import probe_files
from runner.results.probe_labels import PROBE_LABELS
from runner.results.runs import Run, section
from runner.tracking.console import SCORES
from runner.tracking.metrics_log import MetricsLog

SECTIONS = {"test": "metrics", "last": "last", "validation": "best"}  # of summary.json
SHARES = {"score": "score", **SCORES, "pixel_accuracy": "pixel accuracy"}  # of 1, shown in %
METRICS = (*SHARES, "loss")
LABELS = {
    "throughput/images_per_second": "images/s",
    "throughput/train_seconds": "training time (s)",
    "status/diverged": "diverged runs (%)",
    "model/num_params": "parameters",
    "model/multiply_adds": "multiply-adds an image",
}
UNITS = {"throughput/images_per_second": "images/s", "throughput/train_seconds": "s"}
SPLITS = {"test": "test", "last": "test {} of the last weights", "validation": "validation", "train": "training"}
FAMILIES = (*SECTIONS, "train", "throughput", "status", "model", "probe", "setting")
EXAMPLES = "test/score, validation/accuracy, train/loss@epoch=1, probe/sharpness/largest_eigenvalue"


def measure(run: Run, name: str) -> float:
    """The number of `run` under the checked name `name`, in its own units (a share of 1, seconds, ...).

    NaN where the run has none: what comes of a whole training (test, last, validation) is NaN unless the run was
    completed, and so is a probe that was not made or a row of metrics that was not written.
    """
    family, rest, at = _parts(name)
    if family in ("validation", "train") and at is not None:
        return _row_value(run, family, _metric(run, rest), at)
    if family in SECTIONS:
        return _number(section(run.summary, SECTIONS[family]), _metric(run, rest)) if _is_whole(run) else math.nan
    if family == "status":
        return {"completed": 0.0, "diverged": 1.0}.get(run.status, math.nan)
    if family == "probe":
        return _probe_number(run, *rest.split("/", 1), step=at)
    if family == "setting":
        value = canonical(run.settings[rest]) if rest in run.settings else math.nan
        return value if isinstance(value, float) else math.nan
    return _number(section(run.summary, family), rest)


def check_measure(name: str) -> None:
    """Raise ValueError, with the remedy, for a name that no run can have."""
    family, rest, at = _parts(name)
    has_place, epoch = "@" in name, at if "@epoch=" in name else None
    if family not in FAMILIES or not rest:
        hint = did_you_mean(family, FAMILIES) if family not in FAMILIES else ""
        raise ValueError(f"{name}: there is no such measure. {hint or f'Measures look like {EXAMPLES}.'}")
    if has_place and at is None:
        raise ValueError(f"{name}: what stands behind the @ must be epoch=NUMBER or, for a probe, step=NUMBER.")
    if family == "probe":
        probe, _, number = rest.partition("/")
        probes = sorted(file.stem for file in (CONF / "probe").glob("*.yaml"))
        if probe not in probes:
            hint = did_you_mean(probe, probes) or f"Probes: {', '.join(probes)}."
            raise ValueError(f"{name}: there is no probe {probe}. {hint}")
        if not number:
            raise ValueError(f"{name}: name one of the probe's numbers, as in probe/sharpness/largest_eigenvalue.")
        if epoch is not None:
            raise ValueError(f"{name}: a probe's moment is counted in optimizer steps; write @step=NUMBER.")
    elif has_place and (epoch is None or family not in ("train", "validation")):
        raise ValueError(f"{name}: only train and validation have @epoch=NUMBER, and only a probe has @step=NUMBER.")
    elif family == "train" and epoch is None:
        raise ValueError(f"{name}: the training split is measured epoch by epoch; write {name}@epoch=NUMBER.")
    elif family in SECTIONS and epoch is None and rest not in METRICS:
        hint = did_you_mean(rest, METRICS) or f"There are {', '.join(METRICS)}."
        raise ValueError(f"{name}: no run has such a metric. {hint}")
    elif family in ("throughput", "status", "model") and name not in LABELS:
        names = [label for label in LABELS if label.startswith(family)]
        raise ValueError(f"{name}: there is no such measure. There is {' and '.join(names)}.")


def label(name: str, score: str = "score") -> str:
    """How a table or an axis calls the measure, with its unit; `score` is what the runs' score is called.

    >>> from runner.results.measures import label
    >>> label("test/score", "accuracy"), label("probe/sharpness/largest_eigenvalue@step=100")
    ('test accuracy (%)', 'largest eigenvalue (sharpness, step 100)')
    """
    family, rest, at = _parts(name)
    if name in LABELS:
        return LABELS[name]
    if family == "setting":
        return rest
    if family == "probe" and rest in PROBE_LABELS:
        words, its_unit = PROBE_LABELS[rest]
        return words + ("" if at is None else f", step {at}") + (f" ({its_unit})" if its_unit else "")
    if family == "probe":
        probe, _, number = rest.partition("/")
        moment = "" if at is None else f", step {at}"
        return f"{number.replace('_', ' ')} ({probe.replace('_', ' ')}{moment})"
    metric = SHARES.get(score if rest == "score" else rest, rest.replace("_", " "))
    split = SPLITS[family]
    words = split.format(metric) if "{}" in split else f"{split} {metric}"
    return words + ("" if at is None else f" after epoch {at}") + (" (%)" if scale(name) == 100 else "")


def scale(name: str) -> float:
    """What a value is multiplied with to be shown: 100 for shares of 1, which are shown in %, else 1."""
    family, rest, _ = _parts(name)
    is_share = family in (*SECTIONS, "train") and rest in SHARES
    is_share |= family == "probe" and PROBE_LABELS.get(rest, ("", ""))[1] == "%"
    return 100.0 if is_share or name == "status/diverged" else 1.0


def unit(name: str) -> str:
    """The unit of a value that was multiplied with `scale`, empty where it has none: "%", "images/s", "s"."""
    family, rest, _ = _parts(name)
    if family == "probe" and rest in PROBE_LABELS:
        return PROBE_LABELS[rest][1]
    return "%" if scale(name) == 100 else UNITS.get(name, "")


def is_test(name: str) -> bool:
    """Whether the measure was taken on the test split."""
    return name.startswith(("test/", "last/"))


def _parts(name: str) -> tuple[str, str, int | None]:
    """Family, rest and the number behind the last @: `train/loss@epoch=1` as train, loss, 1."""
    place = re.search(r"@(?:epoch|step)=(\d+)$", name)
    family, _, rest = name.partition("@")[0].partition("/")
    return family, rest, int(place.group(1)) if place else None


def _is_whole(run: Run) -> bool:
    """A diverged or interrupted run may have a best epoch behind it, which is not what its training comes to."""
    return run.status == "completed"


def _metric(run: Run, rest: str) -> str:
    return run.score if rest == "score" else rest


def _number(part: dict, key: str) -> float:
    value = part.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _row_value(run: Run, split: str, metric: str, epoch: int) -> float:
    rows = [row for row in _rows(run) if row.get("split") == split and row.get("epoch") == epoch]
    return _number(rows[-1], metric) if rows else math.nan


def _rows(run: Run) -> list[dict]:
    """The rows of metrics.jsonl; none where it is missing or was changed."""
    try:
        return MetricsLog.read(run.folder / "metrics.jsonl")
    except Unreadable:
        return []


def _probe_number(run: Run, probe: str, number: str, *, step: int | None) -> float:
    """An entry of the probe's file of this step, or of the last step where none is named."""
    at_steps = {file.step: file.path for file in probe_files(run.folder, "npz") if file.probe == probe}
    single = at_steps.pop(None, run.folder / "probes" / f"{probe}.npz")
    if at_steps:
        return _entry(at_steps.get(max(at_steps) if step is None else step, single), number)
    if step is not None and not _was_measured(run, probe, step):
        return math.nan
    return _entry(single, number)


def _was_measured(run: Run, probe: str, step: int) -> bool:
    """Whether the run's metrics tell that the probe was made after this step; its file alone does not."""
    rows = (row for row in _rows(run) if row.get("split") == "probe" and row.get("step") == step)
    return any(key.startswith(f"{probe}/") for row in rows for key in row)


def _entry(file: Path, number: str) -> float:
    from runner.results.measurement import NUMBER, number_of

    try:
        entries = read_arrays(file)
        return number_of(entries[NUMBER + number], file) if NUMBER + number in entries else math.nan
    except Unreadable:
        return math.nan

"""Measures: the numbers of a run by names such as `test/accuracy`, and their titles and units in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from runner.config.text import canonical, did_you_mean
from runner.files.readers import Unreadable, read_arrays
from runner.results.metrics import SCORES, SECTIONS, read_rows
from runner.results.run_folder import probe_files
from runner.results.runs import Run

SHARES = {"score": "score", **SCORES, "pixel_accuracy": "pixel accuracy"}  # of 1, shown in %
METRIC_NAMES = (*SHARES, "loss")
SPLIT_TITLES = {"test": "test", "last": "test {} of the last weights", "validation": "validation", "train": "training"}
TITLES = {  # title and unit of other measures; one with the unit % is a share of 1
    "throughput/images_per_second": ("", "images/s"),
    "throughput/train_seconds": ("training time", "s"),
    "train/stochastic_depth/active_multiply_adds": ("multiply-adds computed in training", "%"),
    "status/diverged": ("diverged runs", "%"),
    "model/num_params": ("parameters", ""),
    "model/multiply_adds": ("multiply-adds an image", ""),
    "probe/activation_statistics/slope_log10_std": ("slope of log10 std", "decades a layer"),
    "probe/activation_statistics/slope_log10_mean": ("slope of log10 |mean|", "decades a layer"),
    "probe/class_gradients/most_frequent_share": ("share of the most frequent class, first batch", "%"),
    "probe/class_gradients/most_frequent_share_all": ("share of the most frequent class, all batches", "%"),
    "probe/class_gradients/largest_column_share": ("share of the largest column in the gradient", "%"),
    "probe/divergence_trace/rms_growth_first_layer": ("growth of the first layer's RMS", ""),
    "probe/divergence_trace/rms_growth_last_layer": ("growth of the last layer's RMS", ""),
    "probe/gradient_histogram/range": ("range of the gradient", ""),
    "probe/gradient_histogram/excess_kurtosis": ("excess kurtosis of the gradient", ""),
    "probe/gradient_histogram/tail_index": ("tail index of the gradient", ""),
    "probe/gradient_terms/ratio": ("sum of |terms| over |sum|", ""),
    "probe/largest_rate/log10_rate": ("log10 of the largest rate that trains", "decades"),
    "probe/largest_rate/rate": ("largest rate that trains", ""),
    "probe/loss_landscape/last_improving_step": ("last improving step size", ""),
    "probe/sharpness/largest_eigenvalue": ("largest Hessian eigenvalue", ""),
    "probe/sharpness/threshold_share": ("sharpness over the stability threshold", ""),
    "probe/signal_propagation/final_avg_var": ("average variance after the last block", ""),
    "probe/signal_propagation/largest_factor_off": ("largest factor off the expected variance", ""),
}
FAMILIES = (*SECTIONS, "train", "throughput", "status", "model", "probe", "setting")
EXAMPLES = "test/score, validation/accuracy, train/loss@epoch=1, probe/sharpness/largest_eigenvalue"


def measure(run: Run, name: str) -> float:
    """The number of `run` called `name`, in its own unit (a share of 1, seconds, ...); NaN if the run has none.

    `train/loss` is that of the last epoch, in training mode, over its steps. The metrics of a whole training (test,
    last, validation, train without an epoch) are NaN unless the run was completed.
    """
    family, rest, at = _parts(name)
    if at is None and family in (*SECTIONS, "train") and run.status != "completed":
        return math.nan  # its best epoch, if it has one, is not the result of the whole training
    if family == "train" or (family == "validation" and at is not None):
        return _row_number(run, family, run.score if rest == "score" else rest, epoch=at)
    if family == "status":
        return {"completed": 0.0, "diverged": 1.0}.get(run.status, math.nan)
    if family == "probe":
        return _probe_number(run, *rest.split("/", 1), step=at)
    if family == "setting":
        value = canonical(run.settings[rest]) if rest in run.settings else math.nan
        return value if isinstance(value, float) else math.nan
    return _or_nan(run.number(name))


def check_measure(name: str, probes: Collection[str] = ()) -> None:
    """Raise ValueError, with the remedy, for a name that no measure has; `probes` are those beside the runner's own."""
    family, rest, at = _parts(name)
    has_moment, epoch = "@" in name, at if "@epoch=" in name else None
    if family not in FAMILIES or not rest:
        hint = did_you_mean(family, FAMILIES) if family not in FAMILIES else ""
        raise ValueError(f"{name}: there is no such measure. {hint or f'Measures look like {EXAMPLES}.'}")
    if has_moment and at is None:
        raise ValueError(f"{name}: what stands behind the @ must be epoch=NUMBER or, for a probe, step=NUMBER.")
    if family == "probe":
        from runner.config.options import CONF  # which imports OmegaConf; tables of results do without

        probe, _, number = rest.partition("/")
        probes = sorted({*probes, *(file.stem for file in (CONF / "probe").glob("*.yaml"))})
        if probe not in probes:
            hint = did_you_mean(probe, probes) or f"Probes: {', '.join(probes)}."
            raise ValueError(f"{name}: there is no probe {probe}. {hint}")
        if not number:
            raise ValueError(f"{name}: name one of the probe's numbers, as in probe/sharpness/largest_eigenvalue.")
        if epoch is not None:
            raise ValueError(f"{name}: a probe's moment is counted in optimizer steps; write @step=NUMBER.")
    elif has_moment and (epoch is None or family not in ("train", "validation")):
        raise ValueError(f"{name}: only train and validation have @epoch=NUMBER, and only a probe has @step=NUMBER.")
    elif family in SECTIONS and epoch is None and rest not in METRIC_NAMES:
        hint = did_you_mean(rest, METRIC_NAMES) or f"There are {', '.join(METRIC_NAMES)}."
        raise ValueError(f"{name}: no run has such a metric. {hint}")
    elif family in ("throughput", "status", "model") and name not in TITLES:
        names = [known for known in TITLES if known.startswith(family)]
        raise ValueError(f"{name}: there is no such measure. There is {' and '.join(names)}.")


def measured_probes(runs: Iterable[Run]) -> set[str]:
    """The probes of which a run has a measurement."""
    return {file.probe for run in runs for file in probe_files(run.folder, "npz")}


def label(name: str, score: str = "score") -> str:
    """The title of the measure in tables and figures, with its unit; `score` is the title of the runs' score.

    >>> from runner.results.measures import label
    >>> label("test/score", "accuracy"), label("probe/sharpness/largest_eigenvalue@step=100")
    ('test accuracy (%)', 'largest Hessian eigenvalue, step 100')
    """
    family, rest, at = _parts(name)
    moment = "" if at is None else f", step {at}"
    if family == "setting":
        return rest
    if f"{family}/{rest}" in TITLES:
        title = TITLES[f"{family}/{rest}"][0] + moment
    elif family == "probe":
        probe, number = (part.replace("_", " ") for part in rest.split("/", 1))
        return f"{number} ({probe}{moment})"
    else:
        metric = score if rest == "score" else SHARES.get(rest, rest.replace("_", " "))
        split = SPLIT_TITLES[family]
        title = split.format(metric) if "{}" in split else f"{split} {metric}"
        title += "" if at is None else f" after epoch {at}"
    return f"{title} ({unit(name)})" if title and unit(name) else title or unit(name)


def unit(name: str) -> str:
    """The unit of a value multiplied by `scale`: "%", "images/s", "s", ...; empty without one."""
    family, rest, _ = _parts(name)
    is_share = family in (*SECTIONS, "train") and rest in SHARES
    return "%" if is_share else TITLES.get(f"{family}/{rest}", ("", ""))[1]


def scale(name: str) -> float:
    """The factor from a value to the number that is shown: 100 for shares of 1, which are shown in %, else 1."""
    return 100.0 if unit(name) == "%" else 1.0


def is_test(name: str) -> bool:
    """Whether the measure is taken on the test split."""
    return name.startswith(("test/", "last/"))


def _parts(name: str) -> tuple[str, str, int | None]:
    """Family, rest and the number behind the @: `train/loss@epoch=1` as train, loss, 1."""
    at = re.search(r"@(?:epoch|step)=(\d+)$", name)
    family, _, rest = name.partition("@")[0].partition("/")
    return family, rest, int(at.group(1)) if at else None


def _or_nan(value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _row_number(run: Run, split: str, metric: str, *, epoch: int | None) -> float:
    """The number of an epoch; of the last one where none is named."""
    rows = [row for row in _rows(run) if row["split"] == split and epoch in (None, row["epoch"])]
    return _or_nan(rows[-1].get(metric)) if rows else math.nan


def _rows(run: Run) -> list[dict]:
    """The rows of metrics.jsonl, none if it is missing or damaged."""
    try:
        return read_rows(run.folder)
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
    rows = (row for row in _rows(run) if row["split"] == "probe" and row["step"] == step)
    return any(key.startswith(f"{probe}/") for row in rows for key in row)


def _entry(file: Path, number: str) -> float:
    from runner.results.measurement import NUMBER, number_of

    try:
        entries = read_arrays(file)
        return number_of(entries[NUMBER + number], file) if NUMBER + number in entries else math.nan
    except Unreadable:
        return math.nan

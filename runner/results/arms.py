"""The arms of a comparison: runs that differ in their seed alone are repetitions of one arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runner.config.text import canonical, last_parts, to_override
from runner.results.measures import measure, unit
from runner.results.runs import NOT_IN_ARM, Run, SweepRecord
from runner.results.statistics import t_interval
from runner.results.strays import strays

ABSENT = ""  # the value of a setting that a run does not have at all, such as agc.clip without agc
GROUPS = ("case", "model", "norm", "regularization", "optimizer", "schedule", "dataset", "experiment")
LARGER_IS_BETTER = ("accuracy", "mean_iou", "score", "images_per_second")


@dataclass(frozen=True)
class Axis:
    """A setting in which the arms differ, with its values in order and the names of some in tables."""

    key: str
    name: str
    values: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def title(self, value: str) -> str:
        """The text of a value in a table."""
        return "-" if value == ABSENT else self.names.get(value, value)

    @property
    def numbers(self) -> dict[str, float]:
        """The finite numbers among the values, by their text; empty for an axis of categories.

        A numeric axis has two or more numbers, none of them with a name in tables, and beside them at most null or the
        absence of the setting.
        """
        values = {text: canonical(text) for text in self.values}
        numbers = {t: v for t, v in values.items() if isinstance(v, float) and math.isfinite(v) and t not in self.names}
        others = [text for text in self.values if text not in numbers]
        return numbers if len(numbers) > 1 and len(others) <= 1 and {*others} <= {ABSENT, "null"} else {}


@dataclass(frozen=True)
class Spread:
    """A measure over the seeds of an arm: mean, standard deviation and 95 % interval of the mean.

    No values: all NaN. One value: deviation and interval are NaN.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Arm:
    """The runs that have the same settings on every axis."""

    settings: dict[str, str]
    label: str
    runs: tuple[Run, ...]
    _spreads: dict[str, Spread] = field(default_factory=dict, repr=False, compare=False)

    def spread(self, name: str) -> Spread:
        """The measure over the seeds. Runs of one seed are repetitions and count once, with their mean.

        The share of diverged runs has no deviation and no interval, since 0 and 1 have no t distribution.
        """
        if name not in self._spreads:
            by_seed: dict[object, list[float]] = {}
            for run in self.runs:
                value = measure(run, name)
                if not math.isnan(value):
                    by_seed.setdefault(_seed(run), []).append(value)
            values = [math.fsum(values) / len(values) for values in by_seed.values()]
            result = spread(values, is_share=unit(name) == "%")
            self._spreads[name] = Spread(result.values, result.mean) if name == "status/diverged" else result
        return self._spreads[name]

    @property
    def seeds(self) -> int:
        """The number of different seeds; a run whose seed is unknown counts as one."""
        return len(set(map(_seed, self.runs)))

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)


def spread(values: Sequence[float], *, is_share: bool = False) -> Spread:
    """Mean, standard deviation (n - 1) and 95 % t interval of the mean, of a share on the logit scale.

    An infinite value makes the mean infinite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Spread(tuple(values), sum(values) if values else math.nan)
    return Spread(
        tuple(values), statistics.mean(values), statistics.stdev(values), *t_interval(values, is_share=is_share)
    )


def arms_of(runs: Sequence[Run], sweep: SweepRecord | None = None) -> tuple[list[Axis], list[Arm]]:
    """The axes in which the runs differ, those of the sweep first, and the arms in the order of the axes.

    A setting that a run does not override is looked up in its configuration. Runs without any settings are left out,
    and so are a sweep's strays: with them its settings would all be axes.
    """
    runs = [run for run in runs if run.overrides or run.summary]
    sweep = sweep or SweepRecord()
    if sweep.jobs:
        left_out = {run.folder for run in strays(runs, runs)}
        runs = [run for run in runs if run.folder not in left_out]
    swept = {key: values for key, values in sweep.axes.items() if key not in NOT_IN_ARM}
    axis_values = {}
    for key in dict.fromkeys([*swept, *(key for run in runs for key in run.arm)]):
        used = [_value(run, key) for run in runs]
        values: dict[object, str] = {}
        for text in [*swept.get(key, ()), *used]:
            values.setdefault(canonical(text), text)
        texts = [text for value, text in values.items() if value in set(map(canonical, used))]
        if len(texts) > 1:
            axis_values[key] = tuple(texts if key in swept else _in_order(texts))
    axes = [
        Axis(key, name, values, _value_names(sweep.names.get(key, {}), values))
        for (key, values), name in zip(axis_values.items(), last_parts(list(axis_values)), strict=True)
    ]
    return axes, _grouped(runs, axes)


def common_overrides(runs: Sequence[Run]) -> list[str]:
    """The overrides that all readable runs share; none for a single run."""
    readable = [run.overrides for run in runs if run.summary]
    if len(readable) < 2:
        return []
    others = [set(overrides) for overrides in readable[1:]]
    return [override for override in readable[0] if all(override in each for each in others)]


def label(settings: Mapping[str, str], axes: Sequence[Axis]) -> str:
    """The name of an arm: its values, those without a name in tables as key=value."""
    parts = [
        axis.names.get(value) or (value if axis.key in GROUPS else f"{axis.name}={value}")
        for axis in axes
        if (value := settings[axis.key]) != ABSENT
    ]
    return ", ".join(parts)


def direction(name: str) -> int:
    """1 if larger values of the measure are better, -1 if smaller ones are, 0 if neither."""
    metric = name.partition("@")[0].rpartition("/")[2]
    if name.startswith(("probe/", "setting/", "model/", "status/")):
        return 0
    return 1 if metric in LARGER_IS_BETTER else -1 if metric == "loss" else 0


def rank(arm: Arm, name: str) -> float:
    """A sort key: the best mean of the measure first, arms without a value last."""
    mean = arm.spread(name).mean
    return math.inf if math.isnan(mean) else -direction(name) * mean


def best_arms(arms: Iterable[Arm], name: str, limit: int) -> list[Arm]:
    """The `limit` arms with the best means of the measure, in their given order."""
    arms = list(arms)
    chosen = {id(arm) for arm in sorted(arms, key=lambda arm: rank(arm, name))[:limit]}
    return [arm for arm in arms if id(arm) in chosen]


def _seed(run: Run) -> object:
    return run.folder if run.seed is None else run.seed


def _value(run: Run, key: str) -> str:
    """The run's override of the key, else the value in its configuration."""
    if key in run.settings:
        return run.settings[key]
    node: object = run.resolved
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return ABSENT
        node = node[part]
    # the node of a group has the name of its option
    return to_override(node.get("name", ABSENT) if isinstance(node, dict) else node)


def _in_order(texts: Sequence[str]) -> list[str]:
    """Numbers by size, then other values in their order, then the absence of the setting."""

    def position(text: str) -> tuple[int, float]:
        value = canonical(text)
        return (0, value) if isinstance(value, float) else (2 if text == ABSENT else 1, 0.0)

    return sorted(texts, key=position)


def _value_names(names: Mapping[str, str], values: Sequence[str]) -> dict[str, str]:
    by_value = {canonical(value): name for value, name in names.items()}
    return {value: by_value[canonical(value)] for value in values if canonical(value) in by_value}


def _grouped(runs: Sequence[Run], axes: Sequence[Axis]) -> list[Arm]:
    positions = [{canonical(value): position for position, value in enumerate(axis.values)} for axis in axes]
    groups: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        key = tuple(of_axis[canonical(_value(run, axis.key))] for axis, of_axis in zip(axes, positions, strict=True))
        groups.setdefault(key, []).append(run)
    arms = []
    for key, members in sorted(groups.items()):
        settings = {axis.key: axis.values[position] for axis, position in zip(axes, key, strict=True)}
        members.sort(key=lambda run: math.inf if run.seed is None else run.seed)
        arms.append(Arm(settings, label(settings, axes) or "all runs", tuple(members)))
    return arms

"""The arms of a comparison: runs that differ in their seed alone are repetitions of one arm."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from runner.config.text import canonical, to_override
from runner.results.measures import measure
from runner.results.runs import NOT_COMPARED, Run, SweepRecord
from runner.results.statistics import t_interval

ABSENT = ""  # the value of a setting that a run does not have at all, such as agc.clip without agc
GROUPS = ("case", "model", "norm", "regularization", "optimizer", "schedule", "dataset", "experiment")
LARGER_IS_BETTER = ("accuracy", "mean_iou", "score", "images_per_second")


@dataclass(frozen=True)
class Axis:
    """A setting in which the arms differ: its values in order, and what each is called."""

    key: str
    name: str
    values: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def called(self, value: str) -> str:
        """How a table calls a value of this axis."""
        return "-" if value == ABSENT else self.names.get(value, value)

    @property
    def numbers(self) -> dict[str, float]:
        """The values that are finite numbers, by their text; empty for an axis of categories.

        An axis is numeric if it has two numbers or more, none of them with a name of its own, and beside them at
        most one other value: null, or no such setting.
        """
        found = {text: canonical(text) for text in self.values}
        numbers = {t: v for t, v in found.items() if isinstance(v, float) and math.isfinite(v) and t not in self.names}
        others = [text for text in self.values if text not in numbers]
        return numbers if len(numbers) > 1 and len(others) <= 1 and {*others} <= {ABSENT, "null"} else {}


@dataclass(frozen=True)
class Spread:
    """The values of a measure over the seeds of an arm: their mean, standard deviation and 95 % interval of the mean.

    What cannot be known is NaN: all of them without a value, the deviation and the interval of a single one.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """The runs with the same settings on every axis; `settings` holds each axis' value."""

    settings: dict[str, str]
    label: str
    runs: tuple[Run, ...]
    _spreads: dict[str, Spread] = field(default_factory=dict, repr=False, compare=False)

    def spread(self, name: str) -> Spread:
        """The measure over the seeds. Runs of one seed count once, with their mean: a repetition is no new sample.

        The share of diverged runs has no deviation and no interval: a yes or no has no t distribution.
        """
        if name not in self._spreads:
            by_seed: dict[object, list[float]] = {}
            for run in self.runs:
                value = measure(run, name)
                if not math.isnan(value):
                    by_seed.setdefault(run.folder if run.seed is None else run.seed, []).append(value)
            found = spread([math.fsum(values) / len(values) for values in by_seed.values()])
            if name == "status/diverged":
                found = Spread(found.values, found.mean, math.nan, math.nan, math.nan)
            self._spreads[name] = found
        return self._spreads[name]

    @property
    def seeds(self) -> int:
        """How many seeds its runs have; a run whose seed is not known has one of its own."""
        return len({run.folder if run.seed is None else run.seed for run in self.runs})

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (n - 1) and 95 % t interval of the mean; an infinite value makes the mean infinite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Spread(tuple(values), sum(values) if values else math.nan, math.nan, math.nan, math.nan)
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return Spread(tuple(values), mean, deviation, *t_interval(values))


def arms_of(runs: Sequence[Run], sweep: SweepRecord | None = None) -> tuple[list[Axis], list[Arm]]:
    """The axes of a comparison, as the sweep names them or else as found, and its arms in the order of the axes.

    A setting that a run does not override is looked up in its config.yaml. Runs that tell nothing of their settings
    are in no arm.
    """
    placed = [run for run in runs if run.overrides or run.summary]
    sweep = sweep or SweepRecord()
    swept = {key: values for key, values in sweep.axes.items() if key not in NOT_COMPARED}
    keys = dict.fromkeys([*swept, *(key for run in placed for key in run.arm)])
    found = {}
    for key in keys:
        own = [_value(run, key) for run in placed]
        values: dict[object, str] = {}
        for text in [*swept.get(key, ()), *own]:
            values.setdefault(canonical(text), text)
        occurring = set(map(canonical, own))
        texts = [text for value, text in values.items() if value in occurring]
        if len(texts) > 1:
            found[key] = tuple(texts if key in swept else _in_order(texts))
    axes = [
        Axis(key, name, found[key], _names(sweep.names.get(key, {}), found[key]))
        for key, name in zip(found, last_parts(list(found)), strict=True)
    ]
    return axes, _grouped(placed, axes)


def common_overrides(runs: Sequence[Run]) -> list[str]:
    """The overrides that every readable run has; none if there is but one run."""
    readable = [run.overrides for run in runs if run.summary]
    if len(readable) < 2:
        return []
    others = [set(overrides) for overrides in readable[1:]]
    return [override for override in readable[0] if all(override in each for each in others)]


def last_parts(keys: Sequence[str]) -> list[str]:
    """Each key's part after the last dot, or the whole key where two would look alike."""
    parts = [key.rpartition(".")[2] for key in keys]
    return [part if parts.count(part) == 1 else key for key, part in zip(keys, parts, strict=True)]


def label(settings: Mapping[str, str], axes: Sequence[Axis]) -> str:
    """A name for an arm, or for a part of its settings: a value with a name of its own alone, others with their key."""
    words = [
        axis.names.get(value) or (value if axis.key in GROUPS else f"{axis.name}={value}")
        for axis in axes
        if (value := settings[axis.key]) != ABSENT
    ]
    return ", ".join(words)


def direction(name: str) -> int:
    """1 for a measure of which more is better, -1 for a loss, 0 where neither is better."""
    metric = name.partition("@")[0].rpartition("/")[2]
    if name.startswith(("probe/", "setting/", "model/", "status/")):
        return 0
    return 1 if metric in LARGER_IS_BETTER else -1 if metric == "loss" else 0


def rank(arm: Arm, name: str) -> float:
    """A key that sorts arms from the best mean of the measure to the worst, and those without a value to the end."""
    mean = arm.spread(name).mean
    return math.inf if math.isnan(mean) else -direction(name) * mean


def best_arms(arms: Iterable[Arm], name: str, limit: int) -> list[Arm]:
    """At most `limit` arms, those with the best means of the measure, in their own order."""
    arms = list(arms)
    chosen = {id(arm) for arm in sorted(arms, key=lambda arm: rank(arm, name))[:limit]}
    return [arm for arm in arms if id(arm) in chosen]


def _value(run: Run, key: str) -> str:
    """What a run is set to: its override, else what its configuration says."""
    if key in run.settings:
        return run.settings[key]
    node: object = run.resolved
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return ABSENT
        node = node[part]
    # an option of a group stands in its node with its name
    return to_override(node.get("name", ABSENT) if isinstance(node, dict) else node)


def _in_order(texts: Sequence[str]) -> list[str]:
    """Numbers by size, then all else as it came, then the absence of the setting."""

    def place(text: str) -> tuple[int, float]:
        value = canonical(text)
        return (0, value) if isinstance(value, float) else (2 if text == ABSENT else 1, 0.0)

    return sorted(texts, key=place)


def _names(names: Mapping[str, str], values: Sequence[str]) -> dict[str, str]:
    called = {canonical(value): name for value, name in names.items()}
    return {value: called[canonical(value)] for value in values if canonical(value) in called}


def _grouped(runs: Sequence[Run], axes: Sequence[Axis]) -> list[Arm]:
    texts = [{canonical(value): value for value in axis.values} for axis in axes]
    groups: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        own = [text[canonical(_value(run, axis.key))] for axis, text in zip(axes, texts, strict=True)]
        place = tuple(axis.values.index(value) for axis, value in zip(axes, own, strict=True))
        groups.setdefault(place, []).append(run)
    arms = []
    for place, members in sorted(groups.items()):
        own = {axis.key: axis.values[position] for axis, position in zip(axes, place, strict=True)}
        members.sort(key=lambda run: math.inf if run.seed is None else run.seed)
        arms.append(Arm(own, label(own, axes) or "all runs", tuple(members)))
    return arms

"""A claim of a paper, as a study's sweep.yaml states it, and the checks of its keys and values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from runner.config.text import SettingError, canonical, did_you_mean, same_value, to_override
from runner.results.measures import check_measure

TRANSFORMS = ("log10", "log2")
DIVERGED = "status/diverged"  # 0 or 1 a run: shares of runs are compared, by exact tests
CHOICES = {
    "transform": (None, *TRANSFORMS),
    "combine": ("difference", "ratio"),
    "decided_by": ("interval", "sign_test"),
    "slope_scale": ("log2", "linear"),
}
RETIRED = {  # of the records of earlier sweeps alone
    "when_diverged": "diverged runs are left out, and status/diverged is a measure of its own",
    "every_seed": "take decided_by: sign_test, which needs 6 seeds",
}

Selector = Mapping[str, tuple[str, ...]]
"""Selects the runs whose setting of each key is one of the values."""


@dataclass(frozen=True)
class Threshold:
    """The compared value must lie above or below a bound, or within two, bounds included."""

    kind: str
    bounds: tuple[float, ...]

    def __contains__(self, value: float) -> bool:
        if self.kind == "within":
            return self.bounds[0] <= value <= self.bounds[1]
        return value > self.bounds[0] if self.kind == "above" else value < self.bounds[0]

    def excludes(self, low: float, high: float) -> bool:
        """Whether no value from `low` to `high` lies there."""
        if self.kind == "within":
            return high < self.bounds[0] or low > self.bounds[1]
        return high <= self.bounds[0] if self.kind == "above" else low >= self.bounds[0]


@dataclass(frozen=True)
class Claim:
    """A claim: the measure, the runs to compare, and how the comparison is decided.

    `measure`, less the run's `minus_measure` and after `transform`, is compared between the runs that match `plus` and
    those that match `minus`: the difference of the two sides times `factor`, or their ratio. A side is the mean of its
    arms. With `best_over`, each arm is taken at the values of these keys that are best by the measure `chosen_by`. With
    `slope_over`, the value is the slope over (log2 of) that key. The first `pilot_seeds` seeds (None: a third) choose
    what `best_over` chooses, and the others judge it; a measure that is such a key itself is chosen seed by seed.
    `decided_by`: the interval of the mean, or with "sign_test", which such a measure always has, that of the median.
    Runs that diverged and have no value are left out; `status/diverged` is a measure of its own. `expected` is the
    compared value that the source reports, for which `runner plan` says how many seeds decide the claim.
    """

    claim: str
    measure: str
    plus: tuple[Selector, ...]
    holds: Threshold
    minus: tuple[Selector, ...] = ()
    source: str = ""
    published: str = ""
    minus_measure: str | None = None
    transform: str | None = None
    combine: str = "difference"
    factor: float = 1.0
    best_over: tuple[str, ...] = ()
    chosen_by: str = "validation/score"
    slope_over: str | None = None
    slope_scale: str = "log2"
    decided_by: str = "interval"
    pilot_seeds: int | None = None
    expected: float | None = None

    @property
    def is_ratio(self) -> bool:
        """Whether the two sides are compared by their ratio, computed on logarithms."""
        return self.combine == "ratio"

    @property
    def chosen_seed_by_seed(self) -> bool:
        """Whether the measure is a key of `best_over` itself, chosen for each seed."""
        return self.measure in [f"setting/{key}" for key in self.best_over]


def check_claims(claims: Sequence[Mapping], axes: Mapping[str, Sequence[str]], probes: Collection[str] = ()) -> None:
    """Raise SettingError, with the claim, key, value and remedy, for the first mistake.

    `axes` has the values of each swept key; a claim can compare these alone. `probes` are as in `check_measure`.
    """
    for number, written in enumerate(claims, start=1):
        claim = parse_claim(written, number, probes)
        for key, remedy in RETIRED.items():
            if key in written or written.get("decided_by") == key:
                raise SettingError(f'claim "{claim.claim}": {key}: claims have it no more; {remedy}.')
        _check_axes(claim, {key: [str(value) for value in values] for key, values in axes.items()})


def parse_claim(written: Mapping, number: int = 1, probes: Collection[str] = ()) -> Claim:
    """The claim in a mapping, the `number`-th of sweep.yaml. Raises SettingError as `check_claims`."""
    if not isinstance(written, Mapping):
        raise SettingError(f"claims: entry {number}={written}: it must be a mapping with claim, measure, plus, holds.")
    text = written.get("claim")
    if not isinstance(text, str) or not text.strip():
        raise SettingError(f"claims: entry {number}: claim={text}: it must say in words what is claimed.")
    written = _of_today(written)
    known = [field.name for field in fields(Claim)]
    for key in written:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"Keys: {', '.join(known)}."
            raise _wrong(text, key, written[key], f"a claim has no such key. {hint}")
    for key in ("measure", "plus", "holds"):
        if written.get(key) is None:
            raise SettingError(f'claim "{text}": {key} is missing. A claim needs measure, plus and holds.')
    given = {key: value for key, value in written.items() if value is not None}
    parsers = {**_PARSERS, **dict.fromkeys(("measure", "minus_measure", "chosen_by"), partial(_measure, probes))}
    claim = Claim(**{key: parsers[key](text, key, value) for key, value in given.items()})
    if claim.chosen_seed_by_seed:
        claim = replace(claim, decided_by="sign_test")
    _check_together(claim, given)
    return claim


def _of_today(written: Mapping) -> dict:
    """A claim that an earlier version may have recorded, with the keys of this one."""
    found = {key: value for key, value in written.items() if key != "when_diverged"}
    if found.get("decided_by") == "every_seed":
        found["decided_by"] = None if found.get("measure") == DIVERGED else "sign_test"
    return found


def _check_together(claim: Claim, given: Mapping) -> None:
    """Check keys that depend on one another."""

    def refuse(key: str, why: str) -> None:
        raise _wrong(claim.claim, key, given.get(key), why)

    if claim.is_ratio:
        if not claim.minus:
            refuse("combine", "a ratio compares two sides; add minus.")
        for key in ("transform", "factor"):
            if key in given:
                refuse(key, f"a ratio is computed on logarithms already; leave out {key}, or take combine=difference.")
        if min(claim.holds.bounds) <= 0:
            refuse("holds", "a ratio is compared with numbers above 0; 1 is no change.")
    if claim.minus_measure is not None and (claim.is_ratio or claim.transform or claim.measure == DIVERGED):
        refuse("minus_measure", "it is subtracted from the measure; leave out transform and combine.")
    if claim.factor == 0 or not math.isfinite(claim.factor):
        refuse("factor", "it must be a number other than 0.")
    if claim.measure == DIVERGED:
        for key in ("transform", "combine", "factor", "best_over", "slope_over", "decided_by"):
            if key in given:
                refuse(key, f"{DIVERGED} compares shares of runs by an exact test; leave out {key}.")
    for key, needed in (("chosen_by", "best_over"), ("pilot_seeds", "best_over"), ("slope_scale", "slope_over")):
        if key in given and needed not in given:
            refuse(key, f"it says how {needed} is done; add {needed}, or leave it out.")
    if claim.chosen_by.startswith(("test/", "last/")):
        refuse("chosen_by", "nothing is chosen on the test split; take validation/score.")
    if claim.slope_over in claim.best_over:
        refuse("slope_over", "a key cannot be chosen and give the slope; leave it out of one of the two.")
    for one in claim.plus:
        for other in claim.minus:
            shared = one.keys() & other.keys()
            if all(any(same_value(a, b) for a in one[key] for b in other[key]) for key in shared):
                refuse("minus", "it has runs in common with plus; give another value of a key that plus names.")


def _check_axes(claim: Claim, axes: Mapping[str, Sequence[str]]) -> None:
    text = claim.claim
    for side, selectors in (("plus", claim.plus), ("minus", claim.minus)):
        for selector in selectors:
            for key, values in selector.items():
                _check_swept(text, side, key, axes)
                for value in values:
                    if not any(same_value(value, swept) for swept in axes[key]):
                        raise _wrong(
                            text, f"{side}.{key}", value, f"swept are {', '.join(axes[key])}; take one of these."
                        )
    for key in claim.best_over:
        _check_swept(text, "best_over", key, axes)
    if claim.measure.startswith("setting/"):
        _check_numbers(text, "measure", claim.measure.removeprefix("setting/"), axes)
    if claim.slope_over is not None:
        values = _check_numbers(text, "slope_over", claim.slope_over, axes)
        if len(set(values)) < 2:
            raise _wrong(text, "slope_over", claim.slope_over, "a slope needs two values of it; sweep more.")
        if claim.slope_scale == "log2" and min(values) <= 0:
            raise _wrong(text, "slope_over", claim.slope_over, "log2 needs values above 0; add slope_scale: linear.")


def _check_swept(text: str, place: str, key: str, axes: Mapping[str, Sequence[str]]) -> None:
    if key not in axes:
        hint = did_you_mean(key, axes) or f"Swept are: {', '.join(axes) or 'no keys'}."
        raise _wrong(text, place, key, f"this key is not swept. {hint}")


def _check_numbers(text: str, place: str, key: str, axes: Mapping[str, Sequence[str]]) -> list[float]:
    _check_swept(text, place, key, axes)
    values = [canonical(value) for value in axes[key]]
    if wrong := [value for value, number in zip(axes[key], values, strict=True) if not isinstance(number, float)]:
        raise _wrong(text, place, key, f"its value {wrong[0]} is not a number; take a key whose values are numbers.")
    return values


def _wrong(text: str, key: str, value: object, why: str) -> SettingError:
    return SettingError(f'claim "{text}": {key}={to_override(value)}: {why}')


def _text(text: str, key: str, value: object) -> str:
    if isinstance(value, (Mapping, list)):
        raise _wrong(text, key, value, "it must be text.")
    return str(value).strip()


def _choice(text: str, key: str, value: object) -> str | None:
    choices = [word for word in CHOICES[key] if word is not None]
    if value not in choices:
        raise _wrong(text, key, value, f"it must be {' or '.join(choices)}.")
    return value


def _number(text: str, key: str, value: object) -> float:
    """A number, also as text: YAML reads 1e-3, without a point, as text."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise _wrong(text, key, value, "it must be a number.") from None
    if math.isnan(number):
        raise _wrong(text, key, value, "it must be a number.")
    return number


def _count(text: str, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(text, key, value, "it must be a whole number above 0.")
    return value


def _measure(probes: Collection[str], text: str, key: str, value: object) -> str:
    try:
        check_measure(str(value), probes)
    except ValueError as error:
        raise SettingError(f'claim "{text}": {key}={error}') from None
    return str(value)


def _keys(text: str, key: str, value: object) -> tuple[str, ...]:
    keys = value if isinstance(value, list) else [value]
    if not keys or not all(isinstance(name, str) for name in keys) or "seed" in keys:
        raise _wrong(text, key, value, "it must be swept keys, as in [optimizer.lr]; seeds are repetitions.")
    return tuple(keys)


def _key(text: str, key: str, value: object) -> str:
    if not isinstance(value, str) or value == "seed":
        raise _wrong(text, key, value, "it must be one swept key, as in optimizer.lr; seeds are repetitions.")
    return value


def _selectors(text: str, key: str, value: object) -> tuple[Selector, ...]:
    selectors = []
    for selector in value if isinstance(value, list) else [value]:
        if not isinstance(selector, Mapping) or not selector:
            raise _wrong(text, key, value, "it must be a mapping from swept keys to values, or a list of such.")
        if "seed" in selector:
            raise _wrong(text, key, value, "seeds are repetitions of one arm and are paired; leave out seed.")
        values = {name: chosen if isinstance(chosen, list) else [chosen] for name, chosen in selector.items()}
        if empty := [name for name, chosen in values.items() if not chosen]:
            raise _wrong(text, f"{key}.{empty[0]}", [], "it must be a value or a list of values.")
        selectors.append({str(name): tuple(map(to_override, chosen)) for name, chosen in values.items()})
    if not selectors:
        raise _wrong(text, key, value, "it must be a mapping from swept keys to values, or a list of such.")
    return tuple(selectors)


def _threshold(text: str, key: str, value: object) -> Threshold:
    form = "it must be one of {above: x}, {below: x}, {within: [low, high]}."
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in ("above", "below", "within"):
        raise _wrong(text, key, value, form)
    [(kind, bounds)] = value.items()
    if (kind == "within") != isinstance(bounds, list) or (kind == "within" and len(bounds) != 2):
        raise _wrong(text, key, value, form)
    numbers = tuple(_number(text, f"{key}.{kind}", bound) for bound in (bounds if kind == "within" else [bounds]))
    if kind == "within" and not numbers[0] < numbers[1]:
        raise _wrong(text, f"{key}.within", bounds, "the first number must be smaller than the second.")
    return Threshold(kind, numbers)


_PARSERS = {
    **dict.fromkeys(("claim", "source", "published"), _text),
    **dict.fromkeys(("plus", "minus"), _selectors),
    **dict.fromkeys(CHOICES, _choice),
    "factor": _number,
    "expected": _number,
    "pilot_seeds": _count,
    "holds": _threshold,
    "best_over": _keys,
    "slope_over": _key,
}

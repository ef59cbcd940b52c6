"""The value that a claim compares, computed for each seed from the runs that the claim names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean

from runner.claims.claim import Claim
from runner.config.text import canonical
from runner.results.measures import measure
from runner.results.number_text import format_value
from runner.results.run_state import RESULTS
from runner.results.runs import Run
from runner.results.statistics import slope

LOGARITHMS = {None: lambda value: value, "log10": math.log10, "log2": math.log2}
TIE_DIGITS = 12  # means that agree in as many digits are a tie, whatever the order of summation


class Undecidable(Exception):
    """The runs lack what a claim needs; the message says what."""


@dataclass(frozen=True, eq=False)
class Cell:
    """The settings of an arm and its runs by seed."""

    settings: dict[str, object]
    runs: dict[int, list[Run]]


@dataclass(frozen=True)
class Contrast:
    """The compared value of each seed, a logarithm if the claim compares a ratio.

    `left_out` are the seeds that some cell lacks, `chosen` describes the settings that `best_over` chose, and
    `imputed` is the number of diverged runs that counted as `when_diverged`.
    """

    values: dict[int, float]
    left_out: tuple[int, ...]
    chosen: tuple[str, ...]
    imputed: int


def contrast(claim: Claim, runs: Sequence[Run]) -> Contrast:
    """Compare the two sides of a claim seed by seed. Raises Undecidable."""
    cells = _cells(runs)
    plus = _side(claim, claim.plus, cells)
    minus = _side(claim, claim.minus, cells)
    sides = [*plus, *minus]
    _refuse_unended(sides)
    seeds = set.intersection(*(set(cell.runs) for cell in sides))
    left_out = set.union(*(set(cell.runs) for cell in sides)) - seeds
    if not seeds:
        raise Undecidable("No seed is common to all runs that are compared.")
    study = _Study(claim, sorted(seeds))
    values = study.side(plus)
    if minus:
        others = study.side(minus)
        values = {seed: claim.factor * (values[seed] - others[seed]) for seed in values}
    else:
        values = {seed: claim.factor * value for seed, value in values.items()}
    if study.imputed and not study.measured:
        raise Undecidable("Every run that is compared diverged, so that nothing was measured.")
    if wrong := [seed for seed, value in values.items() if math.isnan(value)]:
        raise Undecidable(f"The values of seed {wrong[0]} are infinite, and what is made of them is no number.")
    return Contrast(values, tuple(sorted(left_out)), tuple(study.chosen), len(study.imputed))


def _cells(runs: Sequence[Run]) -> list[Cell]:
    """The runs by arm; a failed run gives way to another one with the same seed that has a result."""
    cells = {}
    for run in runs:
        cell = cells.setdefault(frozenset(run.arm.items()), Cell(run.arm, {}))
        cell.runs.setdefault(run.seed, []).append(run)
    for cell in cells.values():
        for seed, twins in cell.runs.items():
            cell.runs[seed] = [run for run in twins if run.status in RESULTS] or twins
    return list(cells.values())


def _side(claim: Claim, selectors: Iterable[Mapping[str, Sequence[str]]], cells: Sequence[Cell]) -> list[Cell]:
    """The cells that match one of the selectors.

    Each value of a selector must occur with every combination of the other settings: in an unfinished sweep a cell
    without its counterpart would falsify the comparison. Settings that only some cells have, such as agc.clip, need no
    counterpart.
    """
    both = (*claim.plus, *claim.minus)
    compared = [cell for selector in both for single in _single(selector) for cell in _matching(single, cells)]
    named = {key for selector in both for key in selector}
    named |= {key for cell in compared for key in cell.settings if any(key not in other.settings for other in compared)}
    wanted = {_without(cell, named): cell for cell in compared}
    side = {}
    for single in (single for selector in selectors for single in _single(selector)):
        matching = _matching(single, cells)
        words = " ".join(f"{key}={value}" for key, value in single.items())
        if not matching:
            raise Undecidable(f"There is no run with {words}.")
        present = {_without(cell, named) for cell in matching}
        for rest, cell in wanted.items():
            if rest not in present:
                missing = _words(cell, [key for key in _varied(wanted.values()) if key not in named])
                raise Undecidable(f"There is no run with {words} and {missing}, which what it is compared with has.")
        side |= {id(cell): cell for cell in matching}
    return list(side.values())


def _single(selector: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(selector, values, strict=True)) for values in product(*selector.values())]


def _matching(single: Mapping[str, str], cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if all(cell.settings.get(key) == canonical(single[key]) for key in single)]


def _without(cell: Cell, keys: Iterable[str]) -> frozenset:
    """The cell's settings without `keys`."""
    return frozenset((key, value) for key, value in cell.settings.items() if key not in keys)


def _refuse_unended(cells: Sequence[Cell]) -> None:
    every = [run for cell in cells for twins in cell.runs.values() for run in twins]
    if wrong := [run for run in every if run.status not in RESULTS]:
        first, others = wrong[0], f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        reason = (first.error or "no reason given").strip().splitlines()[0]
        count = f"{len(wrong)} of {len(every)} runs did not come to an end"
        raise Undecidable(f"{count}: {first.folder.name} ({first.status}: {reason}){others}.")
    if unknown := [run for run in every if run.seed is None]:
        raise Undecidable(f"The seed of {unknown[0].folder.name} is not known.")


@dataclass
class _Study:
    """Computes a claim's values over the seeds that all its cells have, and records what it chose and imputed."""

    claim: Claim
    seeds: Sequence[int]
    chosen: list[str] = field(default_factory=list)
    imputed: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)

    def side(self, cells: Sequence[Cell]) -> dict[int, float]:
        """The mean of the cells for each seed, of logarithms for a ratio."""
        arms = self._at_best(cells)
        if self.claim.slope_over is not None:
            arms = self._slopes(arms)
        rows = [values for _, values in arms]
        if self.claim.is_ratio:
            rows = [{seed: self._log(value, seed) for seed, value in values.items()} for values in rows]
        return {seed: _mean([values[seed] for values in rows]) for seed in self.seeds}

    def _at_best(self, cells: Sequence[Cell]) -> list[tuple[Cell, dict[int, float]]]:
        """Each arm with its values by seed; with `best_over`, each arm at the best value of these keys."""
        over = self.claim.best_over
        if not over:
            return [(cell, self._values(cell)) for cell in cells]
        arms = []
        for rivals in _groups(cells, over):
            if self.claim.chosen_seed_by_seed:
                by_seed = {seed: self._best(rivals, [seed]) for seed in self.seeds}
                arms.append((rivals[0], {seed: self._value(cell, seed) for seed, cell in by_seed.items()}))
            else:
                best = self._best(rivals, self.seeds)
                self._note(best, rivals, cells)
                arms.append((best, self._values(best)))
        return arms

    def _best(self, rivals: Sequence[Cell], seeds: Sequence[int]) -> Cell:
        """The cell with the fewest diverged runs; then the best mean over seeds; then the smallest value."""
        name = self.claim.chosen_by
        sign = 1 if name.partition("@")[0].endswith("/loss") else -1

        def rank(cell: Cell) -> tuple:
            runs = [run for seed in seeds for run in cell.runs[seed]]
            if name.startswith("validation/") and any(run.on_test for run in runs):
                raise Undecidable(f"{name} was measured on the test split, on which nothing may be chosen.")
            scores = [measure(run, name) for run in runs if run.status == "completed"]
            if any(map(math.isnan, scores)):
                run = next(run for run in runs if run.status == "completed" and math.isnan(measure(run, name)))
                raise Undecidable(f"{run.folder.name} has no {name}, by which the best is chosen.")
            score = round(sign * fmean(scores), TIE_DIGITS) if scores else 0.0
            return len(runs) - len(scores), score, [_order(cell.settings.get(key)) for key in self.claim.best_over]

        best = min(rivals, key=rank)
        if self.claim.chosen_seed_by_seed and not any(run.status == "completed" for run in best.runs[seeds[0]]):
            raise Undecidable(
                f"Every run of seed {seeds[0]} diverged: it has no best {', '.join(self.claim.best_over)}."
            )
        return best

    def _note(self, best: Cell, rivals: Sequence[Cell], cells: Sequence[Cell]) -> None:
        over = [key for key in self.claim.best_over if key in best.settings]
        values = [f"{key} {_shown(best.settings[key])}{_at_end(key, best, rivals)}" for key in over]
        named = [key for selector in (*self.claim.plus, *self.claim.minus) for key in selector]
        keys = [key for key in dict.fromkeys([*named, *_varied(cells)]) if key not in self.claim.best_over]
        if len(rivals) > 1:
            words = _words(best, keys)
            self.chosen.append(", ".join(values) + (f" for {words}" if words else ""))

    def _slopes(self, arms: Sequence[tuple[Cell, dict[int, float]]]) -> list[tuple[Cell, dict[int, float]]]:
        """The slope by seed, for each group of cells that differ in the slope's key alone."""
        key, lines = self.claim.slope_over, []
        apart = (key, *self.claim.best_over)
        for line in _groups([cell for cell, _ in arms], apart):
            rows = [(cell.settings.get(key), values) for cell, values in arms if any(cell is other for other in line)]
            x = [self._place(value) for value, _ in rows]
            if len(set(x)) < 2:
                raise Undecidable(f"The runs have one value of {key}, and a slope needs two.")
            lines.append((line[0], {seed: slope(x, [values[seed] for _, values in rows]) for seed in self.seeds}))
        return lines

    def _place(self, value: object) -> float:
        is_log = self.claim.slope_scale == "log2"
        if not isinstance(value, float) or (is_log and value <= 0):
            raise Undecidable(f"{self.claim.slope_over}={_shown(value)} has no place on the axis of a slope.")
        return math.log2(value) if is_log else value

    def _values(self, cell: Cell) -> dict[int, float]:
        return {seed: self._value(cell, seed) for seed in self.seeds}

    def _value(self, cell: Cell, seed: int) -> float:
        return _mean([self._run_value(run) for run in cell.runs[seed]])

    def _run_value(self, run: Run) -> float:
        claim, value = self.claim, measure(run, self.claim.measure)
        if not math.isnan(value):
            self.measured.add(str(run.folder))
        elif run.status == "diverged" and claim.when_diverged is not None:
            self.imputed.add(str(run.folder))
            value = claim.when_diverged
        if math.isnan(value):
            hint = ": it diverged, and the claim has no when_diverged" if run.status == "diverged" else ""
            raise Undecidable(f"{run.folder.name} has no {claim.measure}{hint}.")
        if claim.transform is not None and value <= 0:
            raise Undecidable(f"{claim.measure} of {run.folder.name} is {value:g}, which has no logarithm.")
        return LOGARITHMS[claim.transform](value)

    def _log(self, value: float, seed: int) -> float:
        if value <= 0:
            raise Undecidable(f"A value of seed {seed} is {value:g}, and a ratio needs values above 0.")
        return math.log(value)


def _groups(cells: Sequence[Cell], keys: Iterable[str]) -> list[list[Cell]]:
    """Groups of cells that differ in `keys` alone."""
    groups = {}
    for cell in cells:
        groups.setdefault(_without(cell, keys), []).append(cell)
    return list(groups.values())


def _varied(cells: Iterable[Cell]) -> list[str]:
    """The keys in which the cells differ."""
    cells = list(cells)
    keys = dict.fromkeys(key for cell in cells for key in cell.settings)
    return [key for key in keys if len({cell.settings.get(key) for cell in cells}) > 1]


def _words(cell: Cell, keys: Iterable[str]) -> str:
    return " ".join(f"{key}={_shown(cell.settings[key])}" for key in keys if key in cell.settings)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_shown, value))}]"
    return format_value(value, 10)


def _at_end(key: str, best: Cell, rivals: Sequence[Cell]) -> str:
    """A warning if the best of three or more numbers is the smallest or largest: a better one may lie outside."""
    values = sorted({value for rival in rivals if isinstance(value := rival.settings.get(key), float)})
    return " (an end of the range)" if len(values) > 2 and best.settings[key] in (values[0], values[-1]) else ""


def _order(value: object) -> tuple[bool, float, str]:
    return (False, value, "") if isinstance(value, float) else (True, 0.0, str(value))


def _mean(values: Sequence[float]) -> float:
    """The mean, NaN for opposite infinities, for which `fmean` raises an error."""
    return values[0] if len(values) == 1 else sum(values) / len(values)

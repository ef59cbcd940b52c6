"""The value that a claim compares, computed for each seed from the runs that the claim names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from runner.claims.cells import Cell, Undecidable, common_seeds, groups, seeds_in_order, shown, sides
from runner.claims.choice import Choice, best_cell
from runner.claims.claim import Claim
from runner.claims.sequential import PILOT_SEEDS
from runner.results.measures import measure
from runner.results.predictions import images_of, num_images
from runner.results.runs import Run
from runner.results.statistics import slope_weights

if TYPE_CHECKING:
    import numpy as np

LOGARITHMS = {None: lambda value: value, "log10": math.log10, "log2": math.log2}
Value = TypeVar("Value", float, "np.ndarray")


@dataclass(frozen=True)
class Contrast:
    """The compared value of each seed, a logarithm if the claim compares a ratio.

    `images` (seeds, M) has the same of each test image, if all runs know it and the value is its mean; `num_images` is
    the number of images of which accuracies were taken, 0 if unknown. `left_out` are the seeds that some cell lacks,
    `chosen` describes the settings that `best_over` chose on the seeds `pilot`, and `diverged` is the number of runs
    that gave no value.
    """

    values: dict[int, float]
    images: np.ndarray | None = None
    num_images: int = 0
    left_out: tuple[int, ...] = ()
    chosen: tuple[str, ...] = ()
    pilot: tuple[int, ...] = ()
    diverged: int = 0
    cells: tuple[Cell, ...] = ()

    def first(self, number: int) -> Contrast:
        """What was to be compared when so many seeds had judged."""
        values = dict(list(self.values.items())[:number])
        return replace(self, values=values, images=None if self.images is None else self.images[:number], left_out=())


def contrast(claim: Claim, runs: Sequence[Run], *, in_order: bool = False) -> Contrast:
    """Compare the two sides of a claim seed by seed. Raises Undecidable.

    `in_order` for a study that is judged as seeds come in: those that judge end before the first that some arm lacks,
    so that further seeds leave the earlier ones in their places; and those that choose have a number of their own.
    """
    plus, minus = sides(claim, runs)
    cells = [*plus, *minus]
    common = common_seeds(cells)
    chosen, pilot = [], ()
    is_choice = any(len(rivals) > 1 for side in (plus, minus) for rivals in groups(side, claim.best_over))
    if is_choice and not claim.chosen_seed_by_seed:
        pilot = tuple(common[: claim.pilot_seeds or (PILOT_SEEDS if in_order else max(1, len(common) // 3))])
        needed = claim.pilot_seeds or PILOT_SEEDS
        if in_order and len(pilot) < needed:
            raise Undecidable(f"It takes {needed} seeds to choose the settings, and there are {len(pilot)}.", cells)
        choice = Choice(claim, pilot)
        plus, minus = choice.best(plus), choice.best(minus)
        cells, chosen = [*plus, *minus], choice.notes
    judged = seeds_in_order(cells, pilot) if in_order else [seed for seed in common_seeds(cells) if seed not in pilot]
    if not judged:
        chose = f"Seed {pilot[-1]} chose the settings, and no" if pilot else "No"
        raise Undecidable(f"{chose} other seed is left to judge them.", cells)
    diverged = [seed for seed in judged if any(_lacks_value(claim, run) for cell in cells for run in cell.runs[seed])]
    number = sum(_lacks_value(claim, run) for cell in cells for seed in judged for run in cell.runs[seed])
    if len(diverged) == len(judged):
        raise Undecidable(f"In each seed a run that is compared diverged, so that it has no {claim.measure}.")
    judged = [seed for seed in judged if seed not in diverged]
    values = _compared(claim, plus, minus, judged, lambda run: _number(claim, run))
    if wrong := [seed for seed, value in values.items() if math.isnan(value)]:
        raise Undecidable(f"The values of seed {wrong[0]} are infinite, and what is made of them is no number.")
    compared = [run for cell in cells for seed in judged for run in cell.runs[seed]]
    return Contrast(
        values,
        images=_images(claim, compared, lambda of: _compared(claim, plus, minus, judged, of)),
        num_images=min((num_images(run, claim.measure) for run in compared), default=0),
        left_out=tuple(sorted(set().union(*(cell.runs for cell in cells)) - {*judged, *pilot, *diverged})),
        chosen=tuple(chosen),
        pilot=pilot,
        diverged=number,
        cells=tuple(cells),
    )


def _compared(
    claim: Claim, plus: Sequence[Cell], minus: Sequence[Cell], seeds: Sequence[int], of: Callable[[Run], Value]
) -> dict[int, Value]:
    """What the claim compares, for each seed, of the values of runs: numbers, or arrays of the values of images."""
    sides = _side_values(claim, plus, seeds, of), _side_values(claim, minus, seeds, of) if minus else None
    if sides[1] is None:
        return {seed: claim.factor * value for seed, value in sides[0].items()}
    return {seed: claim.factor * (value - sides[1][seed]) for seed, value in sides[0].items()}


def _side_values(
    claim: Claim, cells: Sequence[Cell], seeds: Sequence[int], of: Callable[[Run], Value]
) -> dict[int, Value]:
    """The mean of the arms for each seed, of logarithms for a ratio."""
    arms = []
    for rivals in groups(cells, claim.best_over) if claim.chosen_seed_by_seed else [[cell] for cell in cells]:
        by_seed = {seed: best_cell(claim, rivals, [seed]) if len(rivals) > 1 else rivals[0] for seed in seeds}
        arms.append((rivals[0], {seed: _mean([of(run) for run in cell.runs[seed]]) for seed, cell in by_seed.items()}))
    if claim.slope_over is not None:
        arms = _slopes(claim, arms, seeds)
    rows = [values for _, values in arms]
    if claim.is_ratio:
        rows = [{seed: _log(value, seed) for seed, value in values.items()} for values in rows]
    return {seed: _mean([values[seed] for values in rows]) for seed in seeds}


def _slopes(
    claim: Claim, arms: Sequence[tuple[Cell, dict[int, Value]]], seeds: Sequence[int]
) -> list[tuple[Cell, dict[int, Value]]]:
    """The slope by seed, for each group of cells that differ in the slope's key alone."""
    key, lines = claim.slope_over, []
    for line in groups([cell for cell, _ in arms], (key, *claim.best_over)):
        rows = [(cell.settings.get(key), values) for cell, values in arms if any(cell is other for other in line)]
        x = [_place(claim, value) for value, _ in rows]
        if len(set(x)) < 2:
            raise Undecidable(f"The runs have one value of {key}, and a slope needs two.")
        weights = slope_weights(x)
        lines.append((line[0], {seed: _weighted(weights, [values[seed] for _, values in rows]) for seed in seeds}))
    return lines


def _weighted(weights: Sequence[float], values: Sequence[Value]) -> Value:
    """The weighted sum; NaN if a number among the values is infinite."""
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        return math.nan
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _place(claim: Claim, value: object) -> float:
    is_log = claim.slope_scale == "log2"
    if not isinstance(value, float) or (is_log and value <= 0):
        raise Undecidable(f"{claim.slope_over}={shown(value)} has no place on the axis of a slope.")
    return math.log2(value) if is_log else value


def _measures(claim: Claim) -> list[str]:
    return [claim.measure, *([claim.minus_measure] if claim.minus_measure else [])]


def _lacks_value(claim: Claim, run: Run) -> bool:
    return run.status == "diverged" and any(math.isnan(measure(run, name)) for name in _measures(claim))


def _number(claim: Claim, run: Run) -> float:
    values = {name: measure(run, name) for name in _measures(claim)}
    if missing := [name for name, value in values.items() if math.isnan(value)]:
        raise Undecidable(f"{run.folder.name} has no {missing[0]}.")
    value, *others = values.values()
    value -= sum(others)
    if claim.transform is not None and value <= 0:
        raise Undecidable(f"{claim.measure} of {run.folder.name} is {value:g}, which has no logarithm.")
    return LOGARITHMS[claim.transform](value)


def _images(
    claim: Claim, runs: Sequence[Run], compare: Callable[[Callable[[Run], np.ndarray]], dict[int, np.ndarray]]
) -> np.ndarray | None:
    """What is compared of each image, (seeds, M); None unless it is a mean over the same images in all runs."""
    import numpy as np

    if claim.is_ratio or claim.transform is not None or claim.minus_measure is not None:
        return None
    of_runs = {str(run.folder): images_of(run, claim.measure) for run in runs}
    known = [found for found in of_runs.values() if found is not None]
    if len(known) < len(of_runs) or not all(np.array_equal(found.targets, known[0].targets) for found in known):
        return None
    return np.stack(list(compare(lambda run: of_runs[str(run.folder)].values).values()))


def _log(value: float, seed: int) -> float:
    if value <= 0:
        raise Undecidable(f"A value of seed {seed} is {value:g}, and a ratio needs values above 0.")
    return math.log(value)


def _mean(values: Sequence[Value]) -> Value:
    """The mean, NaN for opposite infinities, for which `fmean` raises an error."""
    return values[0] if len(values) == 1 else sum(values) / len(values)

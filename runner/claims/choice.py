"""The choice of settings: each arm at those of its values that are best by another measure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from runner.claims.cells import Cell, Undecidable, common_seeds, groups, shown, varied, words
from runner.claims.claim import Claim
from runner.results.measures import measure
from runner.results.runs import Run

if TYPE_CHECKING:
    import numpy as np

TIE_DIGITS = 12  # means that agree in as many digits are a tie, whatever the order of summation
PERMUTATIONS = 4999


@dataclass
class Choice:
    """Chooses settings on some seeds, and notes what it chose."""

    claim: Claim
    seeds: Sequence[int]
    notes: list[str] = field(default_factory=list)

    def best(self, cells: Sequence[Cell]) -> list[Cell]:
        """Each arm at its best values of the keys `best_over`."""
        arms = []
        for rivals in groups(cells, self.claim.best_over):
            arms.append(best_cell(self.claim, rivals, self.seeds))
            if len(rivals) > 1:
                self._note(arms[-1], rivals, cells)
        return arms

    def _note(self, best: Cell, rivals: Sequence[Cell], cells: Sequence[Cell]) -> None:
        over = [key for key in self.claim.best_over if key in best.settings]
        values = [f"{key} {shown(best.settings[key])}{_at_end(key, best, rivals)}" for key in over]
        named = [key for selector in (*self.claim.plus, *self.claim.minus) for key in selector]
        keys = [key for key in dict.fromkeys([*named, *varied(cells)]) if key not in self.claim.best_over]
        rest = words(best, keys)
        self.notes.append(", ".join(values) + (f" for {rest}" if rest else ""))


def best_cell(claim: Claim, rivals: Sequence[Cell], seeds: Sequence[int]) -> Cell:
    """The cell with the fewest diverged runs; then the best mean over seeds; then the smallest value."""

    def rank(cell: Cell) -> tuple:
        runs = [run for seed in seeds for run in cell.runs[seed]]
        scores = [score for run in runs if (score := chosen_by(claim, run)) is not None]
        mean = round(fmean(scores), TIE_DIGITS) if scores else 0.0
        return len(runs) - len(scores), -mean, [_order(cell.settings.get(key)) for key in claim.best_over]

    best = min(rivals, key=rank)
    if claim.chosen_seed_by_seed and not any(run.status == "completed" for run in best.runs[seeds[0]]):
        raise Undecidable(f"Every run of seed {seeds[0]} diverged: it has no best {', '.join(claim.best_over)}.")
    return best


def chosen_by(claim: Claim, run: Run) -> float | None:
    """What settings are chosen by, higher is better; None for a run that diverged. Raises Undecidable without one."""
    name = claim.chosen_by
    if name.startswith("validation/") and run.on_test:
        raise Undecidable(f"{name} was measured on the test split, on which nothing may be chosen.")
    if run.status != "completed":
        return None
    if math.isnan(score := measure(run, name)):
        raise Undecidable(f"{run.folder.name} has no {name}, by which the best is chosen.")
    return -score if name.partition("@")[0].endswith("/loss") else score


def ranks_of_rivals(claim: Claim, cells: Sequence[Cell], seeds: Collection[int] | None = None) -> list[np.ndarray]:
    """The ranks (seeds, rivals) by `chosen_by` of each group of rivals, the best one's the largest.

    Runs that diverged come last. `seeds` are all that the rivals have in common, or those of them that are named.
    """
    import numpy as np
    from scipy.stats import rankdata

    ranks = []
    for rivals in groups(cells, claim.best_over):
        common = [seed for seed in common_seeds(rivals) if seeds is None or seed in seeds]
        scores = [[_score(claim, cell, seed) for cell in rivals] for seed in common]
        ranks.append(np.apply_along_axis(rankdata, 1, np.array(scores)))
    return ranks


def chance_of_choice(ranks: Sequence[np.ndarray]) -> float:
    """How probable it is that the scores differ so much by the keys of `best_over` if these change nothing.

    A permutation test of the ranks of each group; the statistic is Friedman's (1937), the sum over groups and rivals of
    the squared sum of ranks over seeds.
    """
    import numpy as np

    draws, generator = np.zeros(PERMUTATIONS), np.random.default_rng(0)
    for rows in ranks:
        permuted = generator.permuted(np.broadcast_to(rows, (PERMUTATIONS, *rows.shape)), axis=2)
        draws += (permuted.sum(1) ** 2).sum(1)
    own = sum((rows.sum(0) ** 2).sum() for rows in ranks)
    return (1 + int((draws >= own - 1e-9).sum())) / (1 + PERMUTATIONS)


def _score(claim: Claim, cell: Cell, seed: int) -> float:
    scores = [chosen_by(claim, run) for run in cell.runs[seed]]
    return fmean(-math.inf if score is None else score for score in scores)


def _at_end(key: str, best: Cell, rivals: Sequence[Cell]) -> str:
    """A warning if the best of three or more numbers is the smallest or largest: a better one may lie outside."""
    values = sorted({value for rival in rivals if isinstance(value := rival.settings.get(key), float)})
    return " (an end of the range)" if len(values) > 2 and best.settings[key] in (values[0], values[-1]) else ""


def _order(value: object) -> tuple[bool, float, str]:
    return (False, value, "") if isinstance(value, float) else (True, 0.0, str(value))

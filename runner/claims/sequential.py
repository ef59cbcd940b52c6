"""Verdicts while seeds come in: intervals and p values that hold at all looks together, for `sweep.decide`.

A study that is judged after each seed and ends as soon as its claims are decided has many chances to err. So each rule
here rests on an e-process: of a hypothesis it is a product of bets, one a seed, that has an expected value of at most 1
however long it goes on. By Ville's inequality (1939) it ever reaches 1/a with probability at most a if the hypothesis
is true. The interval at level a is the set of values whose e-process is below 1/a, and 1 / e is a p value; both hold at
every look at once (Ramdas et al. 2023, arXiv 2210.01948). Nothing else need be known of the looks: not how many there
will be, nor why the last is the last, so a budget may end a study, and a larger one go on with it, and no record of
earlier looks is kept. Alpha spending (Lan & DeMets 1983, doi 10.1093/biomet/70.3.659) would need the number of seeds
beforehand: with 4 - 4 Phi(z_{1-a/4} / sqrt(t)) and 30 seeds it spends 2e-9 of the error at 4, where t is above 1,000.
The price: at 10 and 30 seeds intervals are 1.8 times as wide as those of a single look.

- Mean: the likelihood ratio of t with a normal prior of deviation `PRIOR` on effect / deviation (Lai 1976; Wang &
  Ramdas 2023, arXiv 2310.03722). Test images are drawn once, not at each look, so their part keeps its z quantile.
- Median: the seeds above and below, with a Beta(1/2, 1/2) prior on the share of those above. It takes 7 seeds.
- Shares of diverged runs: the same prior for one share; for two equal ones the bets of Turner, Ly & Grünwald (2021,
  arXiv 2106.02693, with their prior 0.18), for other differences the interval that Newcombe makes of both.
- A choice of settings: which of them is best in each seed, with a Dirichlet(1/2) prior; not by permutations.

The first look is at 4 seeds, and one at each seed after it. A claim stands as the first look that decided it says.
`scripts/calibrate_verdicts.py --sequential` shows how often equal methods are told apart at any look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.special import betaln, stdtr, xlog1py, xlogy

from runner.results.proportions import Share, ShareDifference
from runner.results.statistics import LEVEL, Mean, Median

if TYPE_CHECKING:
    import numpy as np

FIRST_LOOK = 4  # seeds
PILOT_SEEDS = 2  # that choose settings unless a claim says otherwise: their number may not grow with the looks
PRIOR = 3.0  # deviations
FEWEST_FOR_MEDIAN = 7  # seeds of which the smallest and the largest value are an interval
PRIOR_OF_SHARES = 0.18
STEPS = 60  # of a bisection


@dataclass(frozen=True)
class Look:
    """What a claim's interval was after so many seeds that judge it, in the unit of the verdict."""

    seeds: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class SequentialMean(Mean):
    """A mean whose interval holds at all looks together."""

    def critical(self, level: float) -> float:
        """The t at which (1/r)^{1/2} ((1 + t^2/v) / (1 + t^2/(v r)))^{n/2} is 1/level, with v = n - 1, r = 1 + 9 n."""
        n, r = self.seeds, 1 + PRIOR**2 * self.seeds
        power = math.exp((math.log(r) - 2 * math.log(level)) / n)
        return math.sqrt((n - 1) * (power - 1) / (1 - power / r)) if power < r else math.inf

    def nominal_level(self, level: float) -> float:
        """The level of the t interval that is as wide."""
        return 2 * float(stdtr(self.seeds - 1, -self.critical(level)))


@dataclass(frozen=True)
class SequentialMedian(Median):
    """A median whose interval holds at all looks together."""

    def sign_p(self, k: int, number: int) -> float:
        """1 / e of `number` fair coins of which k fell on one side, against Beta(1/2, 1/2)."""
        return min(1.0, math.exp(-_log_bayes_factor(k, number, 0.5)))


@dataclass(frozen=True)
class SequentialShare(Share):
    """A share of runs whose interval holds at all looks together."""

    def p_value(self, bound: float) -> float:
        """1 / e of the share `bound` against Beta(1/2, 1/2)."""
        return min(1.0, math.exp(-_log_bayes_factor(self.count, self.number, bound)))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """All shares whose p value is above `level`, by bisection to each side of the estimate."""
        ends = []
        for end in (0.0, 1.0):
            inside, outside = self.estimate, end
            for _ in range(STEPS):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if self.p_value(middle) > level else (inside, middle)
            ends.append(inside if self.estimate != end else end)
        return ends[0], ends[1]


@dataclass(frozen=True)
class SequentialShareDifference(ShareDifference):
    """A difference of two shares; `seeds` has each seed's diverged runs and runs of both: (k1, n1, k2, n2)."""

    seeds: tuple[tuple[int, int, int, int], ...] = ()

    def limits(self, side: Share, level: float) -> tuple[float, float]:
        """The interval of one of the shares, which holds at all looks together."""
        return SequentialShare(side.count, side.number).interval(level)

    def p_value(self, bound: float) -> float:
        """Of equal shares 1 / e, e the product over seeds of p(runs | a, b) / p(runs | the mean of a and b).

        The shares a and b are guessed from the seeds before.
        """
        if bound != 0:
            return super().p_value(bound)
        log_e, sums = 0.0, [0, 0, 0, 0]
        for row in self.seeds:
            (k1, n1, k2, n2), (s1, m1, s2, m2) = row, sums
            a, b = ((k + PRIOR_OF_SHARES) / (n + 2 * PRIOR_OF_SHARES) for k, n in ((s1, m1), (s2, m2)))
            both = (n1 * a + n2 * b) / (n1 + n2)
            log_e += _log_likelihood(k1, n1, a) + _log_likelihood(k2, n2, b) - _log_likelihood(k1 + k2, n1 + n2, both)
            sums = [total + new for total, new in zip(sums, row, strict=True)]
        return min(1.0, math.exp(-log_e))


def chance_of_winners(ranks: Sequence[np.ndarray]) -> float:
    """1 / e of rivals that are alike, from the ranks (seeds, rivals) of each group, the best one's the largest.

    The bet on a seed's best is its share among the seeds before; of several best ones the mean.
    """
    log_e = 0.0
    for rows in ranks:
        rivals = rows.shape[1]
        wins = [0.5] * rivals
        for row in rows:
            best = [index for index in range(rivals) if row[index] == row.max()]
            log_e += math.log(rivals / sum(wins) * sum(wins[index] for index in best) / len(best))
            for index in best:
                wins[index] += 1 / len(best)
    return min(1.0, math.exp(-log_e))


def _log_bayes_factor(k: int, number: int, share: float) -> float:
    """Of k of `number` trials: their probability under Beta(1/2, 1/2) over that under `share`."""
    return float(betaln(k + 0.5, number - k + 0.5) - betaln(0.5, 0.5)) - _log_likelihood(k, number, share)


def _log_likelihood(k: int, number: int, share: float) -> float:
    return float(xlogy(k, share) + xlog1py(number - k, -share))

"""Shares of runs, such as those that diverged: exact intervals and Fisher's test."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import betaincinv, gammaln, ndtri

from runner.results.statistics import LEVEL, p_value_of


@dataclass(frozen=True)
class Share:
    """A share of runs, k of n, with the exact interval of Clopper and Pearson (1934)."""

    count: int
    number: int

    @property
    def estimate(self) -> float:
        return self.count / self.number

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval that misses the share in at most a share `level` of studies."""
        k, n = self.count, self.number
        low = float(betaincinv(k, n - k + 1, level / 2)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 1 - level / 2)) if k < n else 1.0
        return low, high

    def p_value(self, bound: float) -> float:
        """Twice the smaller binomial tail at the share `bound`."""
        k, n = self.count, self.number
        return min(1.0, 2 * min(_tail(range(k, n + 1), n, bound), _tail(range(k + 1), n, bound)))


@dataclass(frozen=True)
class ShareDifference:
    """The difference of two shares of runs: Newcombe's (1998) interval, and Fisher's exact test of equal shares."""

    plus: Share
    minus: Share

    @property
    def estimate(self) -> float:
        return self.plus.estimate - self.minus.estimate

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Newcombe's interval, from Wilson's of both shares."""
        (low1, high1), (low2, high2) = (self.limits(side, level) for side in (self.plus, self.minus))
        p1, p2 = self.plus.estimate, self.minus.estimate
        return (
            self.estimate - math.hypot(p1 - low1, high2 - p2),
            self.estimate + math.hypot(high1 - p1, p2 - low2),
        )

    def limits(self, side: Share, level: float) -> tuple[float, float]:
        """The interval of one of the shares: Wilson's."""
        return _wilson(side, level)

    def p_value(self, bound: float) -> float:
        """Of equal shares Fisher's, two-sided: all tables that are at most as probable. Else that of the interval."""
        if bound != 0:
            return p_value_of(self.interval, bound)
        a, b = self.plus, self.minus
        total = a.count + b.count
        tables = range(max(0, total - b.number), min(total, a.number) + 1)
        weights = {k: math.exp(_log_choose(a.number, k) + _log_choose(b.number, total - k)) for k in tables}
        own = weights[a.count]
        return min(1.0, sum(w for w in weights.values() if w <= own * (1 + 1e-9)) / sum(weights.values()))


def _tail(counts: range, n: int, share: float) -> float:
    return math.fsum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in counts)


def _wilson(share: Share, level: float) -> tuple[float, float]:
    z, n, p = float(ndtri(1 - level / 2)), share.number, share.estimate
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)


def _log_choose(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

"""Statistics over seeds and test images: intervals of means and medians, the smallest detectable effect, slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, mean, median, stdev
from typing import TYPE_CHECKING

from scipy.special import bdtr, chdtri, expit, logit, nctdtrinc, ndtri, stdtrit

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
POWER = 0.8
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds, and where the value of each test image is known, over a sample of images too.

    The interval at level a is m +- sqrt((t_{1 - a/2, n - 1} e_s)^2 + (z_{1 - a/2} e_i)^2) with the standard errors
    e_s over seeds (what seeds make of images included) and e_i over images: two independent parts, each with its own
    quantile (Zou & Donner 2008, doi 10.1002/sim.3095). A share of 1 has its interval on the logit scale; any other mean
    has it cut at its `limits`.
    """

    estimate: float
    seeds: int
    seed_error: float
    image_error: float = 0.0
    limits: tuple[float, float] = (-math.inf, math.inf)
    is_share: bool = False

    def critical(self, level: float) -> float:
        """How many standard errors over seeds the interval reaches to each side."""
        return t_quantile(1 - level / 2, self.seeds - 1)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval that misses the mean in a share `level` of studies."""
        half = math.hypot(self.critical(level) * self.seed_error, float(ndtri(1 - level / 2)) * self.image_error)
        if self.is_share and half and 0 < self.estimate < 1:
            center, half = float(logit(self.estimate)), half / (self.estimate * (1 - self.estimate))
            return float(expit(center - half)), float(expit(center + half))
        lowest, highest = (0.0, 1.0) if self.is_share else self.limits
        return max(self.estimate - half, lowest), min(self.estimate + half, highest)

    def p_value(self, bound: float) -> float:
        """Twice the probability of a mean at least as far on its side of `bound`, were that the true mean."""
        return p_value_of(self.interval, bound)

    def smallest_effect(self) -> tuple[float, float, float]:
        """The distance from a threshold that a study like this one shows with power 0.8, with its own 95 % interval.

        The true mean lies that far from the threshold where the interval lies on its side in 80 % of such studies: for
        seeds e_s times the noncentrality of t at which P(T <= t_{0.975, n - 1}) = 0.2, for images e_i times
        z_{0.975} + z_{0.8}. Its interval is that of the deviation over seeds, by chi^2 with n - 1 degrees of freedom.
        """
        freedom = self.seeds - 1
        needed = float(nctdtrinc(freedom, 1 - POWER, self.critical(LEVEL)))
        of_images = float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) * self.image_error
        deviations = [1.0, *(math.sqrt(freedom / float(chdtri(freedom, tail))) for tail in (LEVEL / 2, 1 - LEVEL / 2))]
        exact, low, high = (math.hypot(needed * self.seed_error * factor, of_images) for factor in deviations)
        return exact, low, high


@dataclass(frozen=True)
class Median:
    """The median of n seeds with its exact interval, from the k-th smallest to the k-th largest value.

    k is the largest number with P(Bin(n, 1/2) < k) <= a/2: with fewer than 6 seeds there is none, and the interval has
    no ends. It supposes nothing about the values, which may be infinite or equal.
    """

    values: tuple[float, ...]

    @property
    def estimate(self) -> float:
        return median(self.values)

    @property
    def seeds(self) -> int:
        return len(self.values)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The interval that misses the median in at most a share `level` of studies."""
        values, k = sorted(self.values), 0
        while k < self.seeds // 2 and self.sign_p(k, self.seeds) <= level:
            k += 1
        return (values[k - 1], values[-k]) if k else (-math.inf, math.inf)

    def p_value(self, bound: float) -> float:
        """That of the sign test: how probable it is that so many seeds lie on one side of `bound`, their median."""
        above = sum(value > bound for value in self.values)
        below = sum(value < bound for value in self.values)
        return self.sign_p(min(above, below), above + below)

    def sign_p(self, k: int, number: int) -> float:
        """The two-sided p value of k of `number` values on one side of the median, k at most half of them."""
        return min(1.0, 2 * float(bdtr(k, number, 0.5))) if number else 1.0


def mean_of(values: Sequence[float], **about: object) -> Mean:
    """The mean of n >= 2 seeds; equal values have deviation 0."""
    return Mean(mean(values), len(values), standard_error(values), **about)


def mean_over_images(values: np.ndarray, span: float = 1.0, **about: object) -> Mean:
    """The mean of (n seeds, M images), n >= 2, of both as samples: a crossed design without replication.

    With the mean squares of seeds, images and the rest, e_s^2 = max(MS_seeds, MS_rest) / nM and
    e_i^2 = max(MS_images - MS_rest, 0) / nM. Two images more, on which all seeds lie `span` above and below, keep e_i
    from being 0 where no image tells two arms apart (as Agresti and Min 2005 add to paired proportions).
    """
    seeds, images = values.shape
    center, by_seed, by_image = float(values.mean()), values.mean(1), values.mean(0)
    of_seeds = images * float(((by_seed - center) ** 2).sum()) / (seeds - 1)
    of_images = seeds * (float(((by_image - center) ** 2).sum()) + 2 * span**2) / max(images - 1, 1)
    rest = float(((values - by_seed[:, None] - by_image + center) ** 2).sum()) / ((seeds - 1) * max(images - 1, 1))
    count = seeds * images
    return Mean(
        center, seeds, math.sqrt(max(of_seeds, rest) / count), math.sqrt(max(of_images - rest, 0.0) / count), **about
    )


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The quantile of Student's t distribution."""
    return float(stdtrit(degrees_of_freedom, probability))


def t_interval(values: Sequence[float], *, is_share: bool = False) -> tuple[float, float]:
    """The 95 % interval of the mean of n >= 2 finite values: m +- t_{0.975, n-1} s / sqrt(n); on logits for a share."""
    return mean_of(values, is_share=is_share).interval()


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean, s / sqrt(n)."""
    return stdev(values) / math.sqrt(len(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values, which hold the error rate of all decisions together; NaN stays, uncounted."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def slope_weights(x: Sequence[float]) -> list[float]:
    """The weights of y in the slope of its least-squares line over x: (x - mean x) / sum (x - mean x)^2.

    x has two or more different values.
    """
    center = fmean(x)
    from_center = [value - center for value in x]
    total = math.fsum(value * value for value in from_center)
    return [value / total for value in from_center]


def p_value_of(interval: Callable[[float], tuple[float, float]], bound: float) -> float:
    """The level at which an end of the interval is `bound`, by bisection of its logarithm."""
    low, high = math.log(SMALLEST_P), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        left, right = interval(math.exp(middle))
        low, high = (middle, high) if left <= bound <= right else (low, middle)
    return math.exp(high)

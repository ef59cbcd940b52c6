"""Statistics over seeds: t intervals of means, the smallest detectable effect, and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul
from statistics import fmean, mean, stdev

from scipy.special import stdtrit

CONFIDENCE = 0.95
POWER = 0.8


def t_quantile(probability: float, degrees_of_freedom: int) -> float:
    """The quantile of Student's t distribution."""
    return float(stdtrit(degrees_of_freedom, probability))


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of n >= 2 finite values: m +- t_{0.975, n-1} s / sqrt(n).

    Mean and deviation are exact rational numbers, so equal values have deviation 0.
    """
    center, margin = mean(values), _upper_quantile(values) * standard_error(values)
    return center - margin, center + margin


def smallest_effect(values: Sequence[float]) -> float:
    """The distance from a threshold that a study can detect: (t_{0.975, n-1} + t_{0.8, n-1}) s / sqrt(n).

    If the true mean lies this far from the threshold, the whole interval lies on its side in 80 % of such studies. s is
    the estimate of the deviation.
    """
    return (_upper_quantile(values) + t_quantile(POWER, len(values) - 1)) * standard_error(values)


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean, s / sqrt(n)."""
    return stdev(values) / math.sqrt(len(values))


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the least-squares line of y over x: sum (x - mean x) y / sum (x - mean x)^2.

    x has two or more different values; if y has an infinity or NaN, the slope is NaN.
    """
    if not all(map(math.isfinite, y)):
        return math.nan
    center = fmean(x)
    from_center = [value - center for value in x]
    return math.fsum(map(mul, from_center, y)) / math.fsum(map(mul, from_center, from_center))


def _upper_quantile(values: Sequence[float]) -> float:
    return t_quantile((1 + CONFIDENCE) / 2, len(values) - 1)

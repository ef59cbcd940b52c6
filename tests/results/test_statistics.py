from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from runner.results.statistics import slope, smallest_effect, standard_error, t_interval, t_quantile


def studies(n: int, *, mean: float = 0.0, number: int = 2000) -> list[list[float]]:
    return np.random.default_rng(3).normal(mean, 2.0, (number, n)).tolist()


@pytest.mark.parametrize("degrees", [1, 2, 9, 100])
@pytest.mark.parametrize("probability", [0.1, 0.8, 0.975])
def test_quantiles_are_those_of_the_t_distribution(probability, degrees):
    assert t_quantile(probability, degrees) == pytest.approx(scipy.stats.t.ppf(probability, degrees), rel=1e-9)


def test_an_interval_by_hand():
    # mean 3, s = sqrt(2.5), t_{0.975, 4} = 2.7764451 from a printed table
    margin = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - margin, 3 + margin), rel=1e-7)
    # t_{0.8, 4} = 0.9409646
    assert smallest_effect([1, 2, 3, 4, 5]) == pytest.approx(margin + 0.9409646 * math.sqrt(0.5), rel=1e-7)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_intervals_are_those_of_scipy(n):
    for values in studies(n, number=20):
        reference = scipy.stats.t.interval(0.95, n - 1, np.mean(values), scipy.stats.sem(values))
        assert t_interval(values) == pytest.approx(reference)
        assert standard_error(values) == pytest.approx(scipy.stats.sem(values))


@pytest.mark.parametrize("value", [0.1, 0.7 - 0.6, 1e-300, -3.3])
def test_equal_values_have_an_interval_without_width(value):
    assert t_interval([value] * 7) == (value, value)
    assert smallest_effect([value] * 7) == 0


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_covers_the_mean_in_95_of_100_studies(n):
    covered = [low < 1 < high for low, high in map(t_interval, studies(n, mean=1.0))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 studies


@pytest.mark.parametrize("n", [5, 10, 30])
def test_an_effect_of_the_smallest_size_is_seen_in_80_of_100_studies(n):
    typical = np.linspace(-1, 1, n)
    effect = smallest_effect((2.0 * typical / typical.std(ddof=1)).tolist())  # of the deviation that `studies` have
    seen = [low > 0 for low, _ in map(t_interval, studies(n, mean=effect))]
    assert np.mean(seen) == pytest.approx(0.80, abs=0.03)


def test_slopes_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.normal(size=(2, 6))
        assert slope(x.tolist(), y.tolist()) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope([1e9, 1e9 + 1, 1e9 + 2], [5.0, 8.0, 11.0]) == pytest.approx(3.0)
    assert math.isnan(slope([0.0, 1.0], [1.0, math.inf]))

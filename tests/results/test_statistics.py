from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from runner.results.statistics import (
    Median,
    holm,
    mean_of,
    mean_over_images,
    slope_weights,
    standard_error,
    t_interval,
    t_quantile,
)


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


@pytest.mark.parametrize("n", [2, 3, 10])
def test_intervals_and_p_values_are_those_of_scipy(n):
    for values in studies(n, number=20):
        reference = scipy.stats.t.interval(0.95, n - 1, np.mean(values), scipy.stats.sem(values))
        assert t_interval(values) == pytest.approx(reference)
        assert standard_error(values) == pytest.approx(scipy.stats.sem(values))
        assert mean_of(values).p_value(0.3) == pytest.approx(scipy.stats.ttest_1samp(values, 0.3).pvalue, rel=1e-6)


def test_a_share_stays_between_0_and_1():
    low, high = t_interval([0.99, 0.9, 0.97], is_share=True)
    assert 0 < low < 0.9533 < high < 1
    assert t_interval([1.0, 1.0], is_share=True) == (1.0, 1.0)
    # where the share is far from both, as on its own scale
    assert t_interval([0.50, 0.51, 0.49], is_share=True) == pytest.approx(t_interval([0.50, 0.51, 0.49]), abs=1e-4)


@pytest.mark.parametrize("value", [0.1, 0.7 - 0.6, 1e-300, -3.3])
def test_equal_values_have_an_interval_without_width(value):
    assert t_interval([value] * 7) == (value, value)
    assert mean_of([value] * 7).smallest_effect() == (0, 0, 0)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_interval_covers_the_mean_in_95_of_100_studies(n):
    covered = [low < 1 < high for low, high in map(t_interval, studies(n, mean=1.0))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 studies


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_an_effect_of_the_smallest_size_is_seen_in_80_of_100_studies(n):
    typical = np.linspace(-1, 1, n)
    effect, _, _ = mean_of((2.0 * typical / typical.std(ddof=1)).tolist()).smallest_effect()
    seen = [low > 0 for low, _ in map(t_interval, studies(n, mean=effect))]
    assert np.mean(seen) == pytest.approx(0.80, abs=0.027)
    # the interval that a study gives of it covers it in 95 of 100 studies
    intervals = [mean_of(values).smallest_effect()[1:] for values in studies(n)]
    assert np.mean([low <= effect <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_means_over_seeds_and_images_cover_the_mean_of_both():
    """Two methods, each better on other images: over seeds alone most studies would find a difference."""
    generator, missed, alone = np.random.default_rng(0), [], []
    for _ in range(400):
        ease = generator.normal(2, 1.5, 359)
        arms = [
            (ease + generator.normal(0, 0.8, 359) + generator.normal(0, 0.4, (8, 359)) > 0).astype(float)
            for _ in range(2)
        ]
        values = arms[0] - arms[1]
        low, high = mean_over_images(values).interval()
        missed.append(not low <= 0 <= high)
        low, high = t_interval(values.mean(1).tolist())
        alone.append(not low <= 0 <= high)
    assert np.mean(missed) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean(alone) > 0.3


@pytest.mark.parametrize("n", range(2, 20))
def test_a_median_has_the_interval_of_order_statistics(n):
    values = tuple(np.random.default_rng(n).permutation(n).astype(float))
    low, high = Median(values).interval()
    if n < 6:
        assert (low, high) == (-math.inf, math.inf)
        return
    k = int(low) + 1  # the k-th smallest value is k - 1
    assert high == n - k
    assert scipy.stats.binom.cdf(k - 1, n, 0.5) <= 0.025 < scipy.stats.binom.cdf(k, n, 0.5)
    for bound in (-0.5, 1.5, n / 2):
        sides = sum(value > bound for value in values), sum(value < bound for value in values)
        expected = scipy.stats.binomtest(sides[0], sum(sides)).pvalue
        assert Median(values).p_value(bound) == pytest.approx(expected)


def test_holm_by_hand():
    # 0.01 * 4, then 0.02 * 3, 0.03 * 2 = 0.06 (not below the one before), 0.9
    assert holm([0.03, 0.01, math.nan, 0.9, 0.02])[0] == pytest.approx(0.06)
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert math.isnan(holm([0.03, math.nan])[1])


def test_slopes_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.normal(size=(2, 6))
        assert np.dot(slope_weights(x.tolist()), y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert np.dot(slope_weights([1e9, 1e9 + 1, 1e9 + 2]), [5.0, 8.0, 11.0]) == pytest.approx(3.0)

"""Exact intervals and tests of shares, beside scipy's and a published example."""

import pytest
import scipy.stats

from runner.results.proportions import Share, ShareDifference


@pytest.mark.parametrize(("count", "number"), [(0, 3), (1, 3), (3, 3), (5, 12), (7, 100)])
def test_a_share_has_the_interval_of_clopper_and_pearson(count, number):
    interval = scipy.stats.binomtest(count, number).proportion_ci(method="exact")
    assert Share(count, number).interval() == pytest.approx((interval.low, interval.high))
    low, high = Share(count, number).interval()
    for bound in {low, high} - {0.0, 1.0}:
        assert Share(count, number).p_value(bound) == pytest.approx(0.05)


@pytest.mark.parametrize("table", [(3, 3, 0, 3), (4, 4, 0, 4), (0, 5, 0, 7), (7, 9, 2, 11), (30, 40, 12, 40)])
def test_equal_shares_are_tested_as_fisher_did(table):
    a, n, b, m = table
    expected = scipy.stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue
    assert ShareDifference(Share(a, n), Share(b, m)).p_value(0.0) == pytest.approx(expected)


def test_a_difference_has_newcombes_interval():
    """Newcombe (1998), table II: 56/70 - 48/80 has [0.0524, 0.3339] by his method 10."""
    difference = ShareDifference(Share(56, 70), Share(48, 80))
    assert difference.interval() == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference.p_value(difference.interval()[0]) == pytest.approx(0.05)
    low, high = ShareDifference(Share(4, 4), Share(0, 4)).interval()
    assert -1 < low < high <= 1

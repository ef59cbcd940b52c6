"""Activations from block to block."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "signal_propagation")

EXPECTED = np.array([1.0, 1.2, 1.4])


def measured(variance):
    variance = np.array(variance)
    arrays = {"avg_sq_mean": variance / 2, "avg_var": variance, "res_avg_var": np.array([np.nan, *variance[1:]])}
    arrays |= {"expected_avg_var": EXPECTED, "expected_res_avg_var": np.array([np.nan, 1.0, 1.0])}
    return Measurement(arrays, {}, {"places": "stem\na\nb"})


def test_what_is_expected_is_shown_once():
    arms = [("gain 0", measured([1.0, 1.0, 1.0])), ("gain 1", measured([1.0, 1.5, 2.0]))]
    panels = figure(arms).axes
    assert [len(axes.lines) for axes in panels] == [2, 3, 3]
    np.testing.assert_array_equal(panels[1].lines[2].get_ydata(), EXPECTED)
    assert [len(axes.lines) for axes in figure(arms[0][1]).axes] == [1, 2, 2]


def test_seeds_are_a_median_and_a_band():
    seeds = [measured([1.0, 1.0, 1.0]), measured([1.5, 1.2, 9.0]), measured([1.2, 4.0, 3.0])]
    panels = figure([("arm", seeds)]).axes
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), [1.2, 1.2, 3.0])
    np.testing.assert_array_equal(panels[2].lines[0].get_ydata(), [np.nan, 1.2, 3.0])
    assert [len(axes.collections) for axes in panels] == [1, 1, 1]

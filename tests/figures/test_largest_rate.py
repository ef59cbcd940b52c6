"""The largest rate that trains, of several arms."""

import math
from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "largest_rate")


def measured(rate, *losses):
    exponents = np.arange(len(losses), 0.0, -1)
    return Measurement({"log10_rate": exponents, "last_loss": np.array(losses)}, {"rate": rate})


def test_a_dot_a_trial_and_a_line_an_arm():
    arms = [("small", measured(0.1, math.inf, 8.0, 0.5)), ("large", [measured(10.0, 4.0, 0.2), measured(30.0, 0.2)])]
    axes = figure(arms).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["small: 0.1", "large: 20 (10 to 30)"]
    dots = axes.lines[0]
    np.testing.assert_allclose(dots.get_xdata(), [10, 100, 1000])
    np.testing.assert_allclose(dots.get_ydata(), [0.5, 1, 1])  # 5 times the smallest loss of all, 0.2, at most
    assert list(axes.lines[1].get_xdata()) == [0.1, 0.1]


def test_no_rate_trains():
    drawn = figure(measured(math.nan, math.inf, math.inf))
    drawn.draw_without_rendering()
    assert drawn.axes[0].get_legend_handles_labels()[1] == ["nan"]

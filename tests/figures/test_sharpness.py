"""Estimates of the largest eigenvalue."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "sharpness")


def measured(*estimates, converged=True, **more):
    numbers = {"largest_eigenvalue": estimates[-1], "converged": float(converged), **more}
    return Measurement({"estimate": np.array(estimates)}, numbers, {"mode": "train"})


def test_the_estimates_of_each_arm():
    axes = figure([("flat", measured(0.5, 1.0)), ("sharp", measured(40.0, 80.0, 90.0, converged=False))]).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [40, 80, 90])
    assert axes.get_legend_handles_labels()[1] == ["flat: 1", "sharp: 90, not converged"]
    assert "train mode" in axes.get_title()
    assert axes.get_yscale() == "log"


def test_a_line_a_seed_and_one_name():
    seeds = [measured(1.0, 3.0), measured(1.0, 2.0, 5.0, converged=False), measured(-1.0, 4.0)]
    axes = figure([("arm", seeds)]).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 3], [1, 2, 5], [-1, 4]]
    assert axes.get_legend_handles_labels()[1] == ["arm: 4 (3 to 5), 1 of 3 not converged"]
    assert axes.get_yscale() == "linear"


def test_a_line_where_steps_become_unstable():
    arms = [("arm", [measured(1.0, 3.0, stability_threshold=20.0), measured(1.0, 2.0, stability_threshold=20.0)])]
    axes = figure([*arms, ("other", measured(1.0, 2.0, stability_threshold=40.0))]).axes[0]
    levels = [line.get_ydata() for line in axes.lines if line.get_linestyle() == ":"]
    assert [set(level) for level in levels] == [{20}, {40}]
    assert axes.get_legend_handles_labels()[1].count("stable up to here") == 1

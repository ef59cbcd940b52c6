"""Activations by layer through gradient steps."""

import math
from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "divergence_trace")


def measured(records, diverged_after=math.inf):
    variance = np.geomspace(1, 1e6, 4) ** np.linspace(0.1, 1, records)[:, None]
    arrays = {"progress": np.arange(float(records)), "loss": np.ones(records)}
    return Measurement(arrays | {"mean": np.sqrt(variance), "variance": variance}, {"diverged_after": diverged_after})


def test_a_column_an_arm_and_a_line_a_record():
    arms = [("slow", measured(20)), ("fast", measured(4, 3.0))]
    panels = figure(arms).axes
    assert [len(axes.lines) for axes in panels] == [6, 4, 6, 4]
    titles = [axes.get_title() for axes in panels[:2]]
    assert titles == ["slow\nloss stays finite", "fast\nloss not finite after 3 steps"]
    np.testing.assert_allclose(panels[3].lines[-1].get_ydata(), arms[1][1].arrays["variance"][-1])


def test_of_several_seeds_the_first_is_drawn_and_those_that_diverged_are_counted():
    top, bottom = figure([("arm", [measured(3), measured(5, 4.0), measured(6, 5.0)])]).axes
    assert [len(axes.lines) for axes in (top, bottom)] == [3, 3]
    assert top.get_title() == "arm (seed 1 of 3)\nloss not finite in 2 of 3 seeds"


def test_one_record_without_a_finite_value():
    arrays = {"progress": np.zeros(1), "loss": np.full(1, np.nan)}
    broken = arrays | dict.fromkeys(("mean", "variance"), np.full((1, 2), np.nan))
    drawn = figure(Measurement(broken, {"diverged_after": 0.0}))
    drawn.draw_without_rendering()
    assert drawn.axes[0].get_title() == "loss not finite after 0 steps"

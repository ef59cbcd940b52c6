"""The loss against the step along the gradient."""

import math
from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "loss_landscape")

STEPS = np.geomspace(1e-4, 1, 5)


def measured(*relative):
    return Measurement({"step_size": STEPS, "relative_loss": np.array(relative)}, {})


def curves(axes):
    return [line for line in axes.lines if len(line.get_xdata()) == len(STEPS)]


def test_a_line_a_batch_and_a_name_an_arm():
    batches = [0.9, 0.8, 0.7, 2.0, 5.0], [0.9, 0.85, 0.6, 3.0, 9.0]
    drawn = figure([("with", measured(*batches)), ("without", measured(*batches))])
    axes = drawn.axes[0]
    assert axes.get_legend_handles_labels()[1] == ["with", "without"]
    assert len(curves(axes)) == 4
    np.testing.assert_array_equal(curves(axes)[1].get_ydata(), batches[1])
    assert not figure(measured(*batches)).legends


def test_the_batches_of_several_seeds_are_one_band():
    seeds = [measured([0.9, 0.8, 0.7, 2.0, math.inf]), measured([0.8, 0.6, 0.4, 1.0, 5.0])]
    seeds += [measured([0.7, 0.1, 0.1, 0.1, math.inf])]
    axes = figure([("arm", seeds)]).axes[0]
    [curve] = curves(axes)
    np.testing.assert_allclose(curve.get_ydata()[:4], [0.8, 0.6, 0.4, 1.0])
    assert curve.get_ydata()[4] > axes.get_ylim()[1]  # two of three exploded: the line leaves through the top


def test_losses_that_are_not_finite_are_drawn():
    arms = [("exploding", measured([0.9, 0.5, 3.0, math.inf, math.inf])), ("diverged", measured([math.nan] * 5))]
    drawn = figure(arms)
    drawn.draw_without_rendering()
    exploding, diverged = curves(drawn.axes[0])
    assert exploding.get_ydata()[3] > drawn.axes[0].get_ylim()[1]
    assert np.isnan(diverged.get_ydata()).all()

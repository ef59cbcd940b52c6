"""Losses under batch and running statistics, and the distances of the means."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "train_eval_discrepancy")


def measured(batch, running, distance=((1.0, 2.0), (3.0, 6.0))):
    numbers = {"loss_batch_statistics": batch, "loss_running_statistics": running, "changed_predictions": 0.25}
    return Measurement({"distance": np.array(distance)}, numbers, {"layers": "a\nb"})


def test_losses_and_distances():
    left, right = figure([("a", measured(1.0, 2.0)), ("b", measured(3.0, 4.0))]).axes
    assert [patch.get_width() for patch in left.patches] == [1, 3, 2, 4]
    assert not left.lines
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [2, 4])
    assert [tick.get_text() for tick in left.get_yticklabels()] == [f"{a}\n25.0%\nof predictions change" for a in "ab"]


def test_of_several_seeds_the_median_and_a_dot_each():
    seeds = [measured(1.0, 2.0), measured(5.0, 9.0, [[8.0, 4.0]]), measured(2.0, 4.0, [[9.0, 3.0]])]
    left, right = figure([("arm", seeds)]).axes
    assert [patch.get_width() for patch in left.patches] == [2, 4]
    assert [list(line.get_xdata()) for line in left.lines] == [[1, 5, 2], [2, 9, 4]]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [8, 4])


def test_without_batch_norm_there_are_no_distances():
    drawn = figure(measured(1.0, 1.0, np.empty((2, 0))))
    drawn.draw_without_rendering()
    assert not drawn.axes[1].lines

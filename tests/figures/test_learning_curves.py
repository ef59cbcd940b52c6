"""Learning curves of one run, of several arms, and of seeds that end at different epochs."""

import math
from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "learning_curves")


def measured(validation, score="accuracy", loss=None):
    epochs = np.arange(1.0, len(validation) + 1)
    loss = np.linspace(2, 1, len(validation)) if loss is None else np.array(loss)
    arrays = {}
    for split, values in (("train", np.array(validation) / 2), ("validation", np.array(validation))):
        arrays |= {f"{split}/epoch": epochs, f"{split}/loss": loss, f"{split}/{score}": values}
    return Measurement(arrays, {}, {"score": score})


def test_training_and_validation_of_each_arm():
    arms = [("digits", measured([0.25, 0.5, 0.75], loss=[1.5, math.nan, 0.5]))]
    arms += [("scenes", measured([0.5, 0.625, 0.5], "mean_iou"))]
    left, right = figure(arms).axes
    labels = [f"{arm} {split}" for arm in ("digits", "scenes") for split in ("train", "validation")]
    assert left.get_legend_handles_labels()[1] == labels
    np.testing.assert_array_equal(left.lines[0].get_ydata(), [1.5, math.nan, 0.5])
    np.testing.assert_array_equal(right.lines[3].get_ydata(), [0.5, 0.625, 0.5])
    assert right.get_ylabel() == "accuracy or mean IoU (share of 1)"


def test_seeds_are_a_median_and_a_band_as_far_as_they_came():
    ended, early = measured([0.1, 0.9]), Measurement({}, {}, {"score": ""})
    drawn = figure([("arm", [measured([0.2, 0.3, 0.4, 0.5]), ended, measured([0.3, 0.4, 0.6, 0.9]), early])])
    _, right = drawn.axes
    train, train_cross, validation, validation_cross = right.lines
    np.testing.assert_array_equal(validation.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(validation.get_ydata(), [0.2, 0.4, 0.5, 0.7])
    np.testing.assert_allclose(train.get_ydata(), [0.1, 0.2, 0.25, 0.35])
    assert (validation_cross.get_xdata(), validation_cross.get_ydata()) == ([2], [0.9])
    assert train_cross.get_marker() == validation_cross.get_marker() == "x"
    corners = right.collections[1].get_paths()[0].vertices
    ends = [(corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max()) for x in (1, 2, 3, 4)]
    assert ends == [(0.1, 0.3), (0.3, 0.9), (0.4, 0.6), (0.5, 0.9)]


def test_runs_without_an_epoch_have_an_empty_figure():
    drawn = figure([("early", [Measurement({}, {}, {"score": ""})] * 2)])
    drawn.draw_without_rendering()
    assert not drawn.axes[0].lines


def test_losses_of_very_different_sizes_have_a_logarithmic_axis():
    near = measured([0.1, 0.2], loss=[4.0, 1.0])
    for far, scale in (([3000.0, math.nan], "log"), ([30.0, 2.0], "linear"), ([3000.0, 0.0], "linear")):
        left, _ = figure([("near", near), ("far", measured([0.1, 0.1], loss=far))]).axes
        assert left.get_yscale() == scale

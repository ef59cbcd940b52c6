"""Channel means and deviations by depth: the models of all seeds together."""

from functools import partial

import numpy as np
import pytest

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "activation_statistics")


def measured(std, slopes):
    """Measurements of models whose deviations by layer are `std`."""
    std = np.array(std, dtype=float)
    arrays = {"depth": np.array([0, 2, 4]), "mean": std / 100, "std": std}
    return Measurement(arrays, {"slope_log10_std": np.mean(slopes)}, {"layers": "a"})


def test_seeds_and_models_are_alike():
    one, two = [1, 10, 100], [2, 30, 500]
    several = measured([one, two, [1.5, 20, 900]], [1.0, 1.2, 1.4])
    apart = [measured([one], [1.0]), measured([two, [1.5, 20, 900]], [1.2, 1.4])]
    for arm in (several, apart):
        left, right = figure([("arm", arm)]).axes
        assert [left.get_yscale(), right.get_yscale()] == ["log", "log"]
        np.testing.assert_array_equal(right.lines[0].get_xdata(), [0, 2, 4])
        np.testing.assert_array_equal(right.lines[0].get_ydata(), [1.5, 20, 500])
        np.testing.assert_allclose(left.lines[0].get_ydata(), [0.015, 0.2, 5])
        assert right.get_legend_handles_labels()[1] == ["arm: std +1.200 decades a layer"]


def test_a_line_an_arm():
    arms = [("a", measured([[1, 2, 3]], [0.1])), ("b", measured([[1, 1, 1]], [0.0]))]
    panels = figure(arms).axes
    assert [len(axes.lines) for axes in panels] == [2, 2]
    assert not any(axes.collections for axes in panels)
    assert [len(axes.lines) for axes in figure(arms[0][1]).axes] == [1, 1]


def test_models_of_different_layers_are_refused():
    other = Measurement(measured([[1, 2, 3]], [0.0]).arrays, {"slope_log10_std": 0.0}, {"layers": "b"})
    with pytest.raises(ValueError, match="different layers"):
        figure([("arm", [measured([[1, 2, 3]], [0.0]), other])])

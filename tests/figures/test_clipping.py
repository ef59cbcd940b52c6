"""Ratios of gradient to weight norms by parameter."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "clipping")


def measured(names, medians, shares, clip=0.01):
    ratio = np.array(medians)[:, None] * np.array([0.25, 0.5, 1, 2, 4])
    arrays = {"level": np.linspace(0, 1, 5), "ratio": ratio, "share_above": np.array(shares)}
    return Measurement(arrays, {"share_above": np.mean(shares), "clip": clip}, {"parameters": "\n".join(names)})


BOTH = ("weight", "bias")


def test_heat_maps_over_training():
    seeds = [measured(BOTH, [median, 0.05], [share, 1]) for median, share in ((0.1, 0), (0.06, 1), (0.01, 1))]
    arms = [
        ("step 0", measured(BOTH, [0.006, 0.005], [1 / 3, 0])),
        ("step 100", seeds),
        ("step 200", measured(["weight"], [0.0], [0])),
    ]
    left, right = figure(arms).axes[:2]
    np.testing.assert_allclose(left.images[0].get_array().filled(np.nan), [[1 / 3, 2 / 3, 0], [0, 1, np.nan]])
    expected = np.log10([[0.006, 0.06, np.nan], [0.005, 0.05, np.nan]])
    np.testing.assert_allclose(right.images[0].get_array().filled(np.nan), expected)
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["step 0", "step 100", "step 200"]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["weight", "bias"]


def test_one_measurement_shows_medians_and_the_clip():
    axes = figure(measured(BOTH, [0.006, 0.005], [0.5, 0.0])).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.006, 0.005])
    assert axes.lines[1].get_xdata() == [0.01, 0.01]
    assert "25.0%" in axes.get_title()


def test_one_arm_of_several_seeds_shows_the_median_of_each_quantile():
    arm = [measured(BOTH, [median, 0.5], [share, 0.0]) for median, share in ((0.1, 0.2), (0.3, 0.4), (0.2, 0.9))]
    axes = figure([("arm", arm)]).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.2, 0.5])
    assert axes.get_title().startswith("Adaptive clipping: 25.0% of the units")

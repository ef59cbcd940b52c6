"""Histograms of a layer's gradient and its tails."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "gradient_histogram")


def measured(counts, kurtosis=1.0, scale=1.0):
    tail = {"tail_probability": np.array([0.01, 0.1, 0.5, 1.0]), "tail_value": scale * np.array([8.0, 4.0, 2.0, 1e-9])}
    edges = np.linspace(-8, 8, len(counts) + 1)
    numbers = {"excess_kurtosis": kurtosis, "tail_index": 2.0}
    return Measurement({"counts": np.array(counts), "edges": edges, **tail}, numbers, {"layer": "conv"})


def test_counts_on_one_scale_and_all_tails_together():
    panels = figure([("a", measured([1, 900, 1])), ("b", measured([5, 5, 5], scale=0.5))]).axes
    assert [axes.get_yscale() for axes in panels] == ["log"] * 3
    assert panels[0].get_ylim() == panels[1].get_ylim() == (0.5, 1800)
    assert [list(line.get_xdata()) for line in panels[2].lines] == [[8, 4, 2, 1e-9], [4, 2, 1, 5e-10]]
    assert panels[2].get_xlim()[0] == 1  # half of the weights of b are below, over nine decades


def test_of_several_seeds_the_first_ones_counts_and_the_tail_of_each():
    panels = figure([("arm", [measured([1, 9, 1], 3.0), measured([5, 5, 5], 1.0), measured([5, 5, 5], 2.0)])]).axes
    np.testing.assert_array_equal(panels[0].patches[0].get_data().values, [1, 9, 1])
    assert panels[0].get_title() == "arm (seed 1 of 3)\nexcess kurtosis 2 (1 to 3)\ntail index 2 (2 to 2)"
    assert len(panels[1].lines) == 3
    assert panels[1].get_legend_handles_labels()[1] == ["arm"]


def test_a_gradient_of_zero_is_drawn():
    figure(measured([0, 500, 0], np.nan, scale=0.0)).draw_without_rendering()

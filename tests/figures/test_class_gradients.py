"""Heat maps of the gradients at the logits."""

from functools import partial

import numpy as np
import pytest

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "class_gradients")

GRADIENT = np.array([[0.1, -0.3], [-0.2, 0.2], [0.05, 0.0]])


def measured(share=0.5, scale=1.0):
    arrays = {"gradient": scale * GRADIENT, "mean_gradient": scale * GRADIENT / 2}
    return Measurement(arrays, {"most_frequent_share": share, "num_batches": 2.0})


@pytest.mark.parametrize("num_arms", [1, 3])
def test_a_column_an_arm_on_one_scale(num_arms):
    drawn = figure(measured() if num_arms == 1 else [(str(arm), measured(scale=arm + 1)) for arm in range(num_arms)])
    heat_maps = [axes for axes in drawn.axes if axes.images]
    assert len(heat_maps) == 2 * num_arms
    np.testing.assert_allclose(heat_maps[0].images[0].get_array(), 3 * GRADIENT)
    for axes in heat_maps[:num_arms]:
        assert axes.images[0].get_clim() == pytest.approx((-0.9 * num_arms, 0.9 * num_arms))


def test_of_several_seeds_the_map_is_the_first_ones():
    first, *_ = figure([("arm", [measured(0.5), measured(0.75, 9.0), measured(1.0, 9.0)])]).axes
    np.testing.assert_allclose(first.images[0].get_array(), 3 * GRADIENT)
    assert first.get_title().startswith("arm (seed 1 of 3)\n")
    assert "75% (50% to 100%) of the samples" in first.get_title()

"""How far the terms of gradients cancel, by layer."""

from functools import partial

import numpy as np

from runner.figures import draw
from runner.results.measurement import Measurement

figure = partial(draw, "gradient_terms")


def measured(*ratio, layers="conv1\nconv2"):
    return Measurement({"ratio": np.array(ratio)}, {}, {"layers": layers})


def test_a_line_an_arm_and_the_layers_by_name():
    (axes,) = figure([("a", measured(2.0, 3.0)), ("b", [measured(9.0, 20.0), measured(8.0, 40.0)])]).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2, 3])
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [8.5, 30])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "conv2"]
    assert {text.get_text() for text in axes.texts} == {"2", "3", "8.5", "30", "all terms of one sign"}


def test_layers_that_differ_from_arm_to_arm_have_no_name():
    (axes,) = figure([("a", measured(2.0, 3.0)), ("b", measured(4.0, layers="stem"))]).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]

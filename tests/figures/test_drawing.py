"""What the figures of several arms share."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from runner.figures.drawing import (
    draw_band,
    first_seeds,
    labelled,
    legend_below,
    line_style,
    median_and_range,
    over_seeds,
    seeds_note,
    set_y_scale,
)
from runner.results.measurement import Measurement


def test_arms():
    one, other = Measurement({}, {}), Measurement({}, {})
    assert labelled(one) == [("", [one])]
    assert labelled((("a", one), ("b", (other, one)))) == [("a", [one]), ("b", [other, one])]
    assert first_seeds([("a", [one]), ("b", [other, one])]) == [("a", one), ("b (seed 1 of 2)", other)]
    for nothing in ([], [("a", [])]):
        with pytest.raises(ValueError, match="no measurements to draw"):
            labelled(nothing)


def test_seeds_of_one_arm_are_of_one_architecture():
    seeds = [Measurement({"a": np.array([1.0, value])}, {}, {"layers": "x\ny"}) for value in (2.0, 3.0)]
    np.testing.assert_array_equal(over_seeds(seeds, "a"), [[1, 2], [1, 3]])
    with pytest.raises(ValueError, match="different layers"):
        over_seeds([*seeds, Measurement(seeds[0].arrays, {}, {"layers": "x\nz"})], "a")


@pytest.mark.parametrize(
    ("values", "text"),
    [([2.0], "2.00"), ([3.0, 1.0, 1.5], "1.50 (1.00 to 3.00)"), ([1.0, np.inf], "inf (1.00 to inf)")],
)
def test_median_and_range(values, text):
    assert median_and_range(values, ".2f") == text


def test_the_note_says_how_many_seeds_there_are():
    one, two, three = (("", [None] * count) for count in (1, 2, 3))
    assert seeds_note([one, one]) == ""
    assert seeds_note([three, three], "dots") == "\n3 seeds; dots"
    assert seeds_note([three, one, two], "dots") == "\n1 to 3 seeds; dots"


def test_a_band_is_of_the_values_that_are_finite():
    values = np.array([[1.0, 4.0, np.nan, np.inf], [2.0, 5.0, 7.0, np.nan], [6.0, 0.0, 9.0, np.nan]])
    axes = Figure().subplots()
    draw_band(axes, range(4), values, style=line_style(0), label="arm")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [2, 4, 8, np.nan])
    [band] = axes.collections
    corners = band.get_paths()[0].vertices
    ends = [(corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max()) for x in range(3)]
    assert ends == [(1, 6), (0, 5), (7, 9)]
    draw_band(axes, range(4), values[:1], style=line_style(1))
    assert len(axes.collections) == 1
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [1, 4, np.nan, np.nan])


def test_lines_differ_without_colour():
    styles = [(line_style(index)["linestyle"], line_style(index)["marker"]) for index in range(12)]
    assert len(set(styles)) == 12


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 19], "linear"), ([1, 21], "log"), ([0, np.nan, -5, 3], "linear"), ([np.inf, 1, 2], "linear"), ([], "linear")],
)
def test_an_axis_is_logarithmic_where_values_span_decades(values, scale):
    axes = Figure().subplots()
    set_y_scale(axes, [np.array(values, dtype=float)])
    assert axes.get_yscale() == scale


def test_a_legend_stands_only_where_something_is_labelled():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2])
    legend_below(figure, axes)
    assert not figure.legends
    axes.plot([1, 2], label="arm")
    legend_below(figure, axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["arm"]


@pytest.mark.parametrize("label", ["arm", "an arm with a name of some length: 10.9 (3.93 to 11.7)"])
@pytest.mark.parametrize("number", [2, 5, 7])
def test_a_legend_fits_below_its_figure(label, number):
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for index in range(number):
        axes.plot([1, 2], label=f"{label} {index}")
    legend_below(figure, axes)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert box.y1 < axes.get_tightbbox().y0
    one = Figure(figsize=(6.5, 4), layout="constrained")
    panel = one.subplots()
    panel.plot([1, 2], label="arm")
    legend_below(one, panel)
    one.draw_without_rendering()
    # the panel is as high as over a legend of one row
    assert axes.get_window_extent().height == pytest.approx(panel.get_window_extent().height, abs=8)

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats

from runner.report.arm_table import decimals
from runner.report.sweep_figure import figure_caption, sweep_figure
from runner.results.arms import arms_of
from runner.results.runs import read_runs

TITLE = "test accuracy (%)"
SEEDS = (0.90, 0.94, 0.92)


@pytest.fixture
def draw(make_run, tmp_path):
    """Runs given by their overrides and accuracies as a figure's axes, with the figure's caption."""

    def draw(runs, **options):
        for overrides, accuracy in runs:
            status = "completed" if accuracy else "diverged"
            make_run(*overrides, accuracy=accuracy, status=status)
        axes, arms = arms_of(read_runs([tmp_path / "sweep"]))
        figure = sweep_figure(axes, arms, "test/score", TITLE, **options)
        figure.draw_without_rendering()
        return figure, figure_caption(axes, arms, "test/score")

    return draw


def line(axes, label):
    [found] = [line for line in axes.lines if line.get_label() == label]
    return found


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_one_numeric_axis_is_a_line_of_means_with_t_intervals(draw):
    runs = [((f"size={s}", f"seed={n}"), a) for s in (16, 32, 64) for n, a in enumerate(SEEDS)]
    figure, caption = draw(runs)
    [axes] = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "64"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("size", TITLE)
    means = next(line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-")
    assert means.get_xdata() == pytest.approx([16, 32, 64])
    assert means.get_ydata() == pytest.approx([92, 92, 92])
    [bars] = [c for c in axes.containers if hasattr(c, "has_yerr")]
    low, high = bars.lines[2][0].get_segments()[0][:, 1]
    error = scipy.stats.sem([0.90, 0.94, 0.92]) / (0.92 * 0.08)  # on the logit scale
    reference = scipy.stats.t(2, loc=scipy.special.logit(0.92), scale=error).interval(0.95)
    assert (low, high) == pytest.approx(tuple(100 * scipy.special.expit(reference)))
    assert "95 % t intervals" in caption


def test_evenly_spaced_numbers_have_a_linear_axis(draw):
    figure, _ = draw([((f"rate={r}",), 0.9) for r in (0.1, 0.2, 0.3, 0.4)])
    assert figure.axes[0].get_xscale() == "linear"


def test_a_line_a_category_and_a_horizontal_one_without_the_number(draw):
    runs = [((f"norm={n}", f"size={s}"), a) for n, a in (("a", 0.8), ("b", 0.9)) for s in (16, 64)]
    figure, _ = draw([*runs, (("norm=plain",), 0.7)])
    [axes] = figure.axes
    assert line(axes, "b").get_ydata() == pytest.approx([90, 90])
    assert line(axes, "plain").get_ydata() == pytest.approx([70, 70])
    styles = {line(axes, name).get_linestyle() for name in ("a", "b", "plain")}
    assert len(styles) == 3  # told apart without colour


def test_a_point_without_a_value_is_a_cross_and_one_of_few_seeds_says_so(draw):
    runs = [(("size=16", "seed=0"), 0.9), (("size=16", "seed=1"), None), (("size=32",), None), (("size=64",), 0.8)]
    figure, caption = draw(runs)
    [axes] = figure.axes
    [cross] = [line for line in axes.lines if line.get_marker() == "x"]
    assert cross.get_xdata() == pytest.approx([32])
    assert texts(axes) == ["1 of 2"]
    assert "A cross: no run of the arm has a value." in caption


def test_too_many_lines_are_the_best_and_the_title_says_so(draw):
    figure, _ = draw([((f"norm=m{n:02d}", f"size={s}"), 0.5 + n / 100) for n in range(12) for s in (16, 64)])
    [axes] = figure.axes
    assert axes.get_title() == "the 7 best of 12 lines"
    assert [handle.get_text() for handle in figure.legends[0].get_texts()] == [f"m{n:02d}" for n in range(5, 12)]


def test_two_numeric_axes_are_a_heat_map_with_readable_numbers(draw):
    clips = np.arange(0.1, 0.6, 0.05).round(2)
    runs = [((f"clip={c}", f"size={s}"), 0.2 + c + s / 1000) for c in clips for s in (16, 64)]
    figure, _ = draw([*runs[:-1], (runs[-1][0], None)])
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("clip", "size")
    [image] = axes.images
    assert image.get_array().shape == (2, 10)
    assert image.get_array()[1, 0] == pytest.approx(36.4)
    assert "36.4" in texts(axes)
    assert "diverged" in texts(axes)
    for text in axes.texts:
        column, row = text.get_position()
        value = image.get_array()[row, column]
        if not np.ma.is_masked(value):
            assert contrast(text.get_color(), image.cmap(image.norm(value))) > 4.5


def contrast(text, ground):
    """WCAG's ratio of luminances."""

    def luminance(colour):
        shares = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot(shares, [0.2126, 0.7152, 0.0722]))

    one, other = luminance({"white": (1, 1, 1), "black": (0, 0, 0)}[text]), luminance(ground)
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_categories_are_rows_with_the_best_on_top_or_in_order(draw):
    runs = [((f"case={c}", f"seed={n}"), a + n / 100) for c, a in (("a", 0.7), ("b", 0.9), ("c", 0.8)) for n in (0, 1)]
    figure, caption = draw([*runs, (("case=d",), None)])
    [axes] = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a", "d"]
    low, high = axes.get_ylim()
    assert low > high  # the first row on top
    assert texts(axes) == ["diverged"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"] == pytest.approx([90.5, 80.5, 70.5])
    assert "range of the two" in caption  # of two seeds a t interval is wider than all that is possible


def test_categories_in_order(draw):
    figure, _ = draw([((f"case={c}",), a) for c, a in (("a", 0.7), ("b", 0.9), ("c", 0.8))], in_order=True)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize(("images", "between", "places"), [(359, 0.001, 1), (10_000, 0.001, 2), (10_000, 0.1, 1)])
def test_decimals_follow_the_spread_and_the_number_of_images(make_run, tmp_path, images, between, places):
    for seed in (0, 1):
        make_run(f"seed={seed}", accuracy=0.8 + seed * between, data={"test": images})
    _, arms = arms_of(read_runs([tmp_path / "sweep"]))
    assert decimals(arms, "test/accuracy") == places
    assert decimals(arms, "throughput/images_per_second") == 0
